// Scores one encoded request with ONNX Runtime alone: score MODEL.onnx < encoded.txt
//
// A line of the input is a tensor: name, "int64" or "float32", number of axes, their lengths, values ("nan" is missing).
// docs/examples/encode.py writes such lines. The scores of the click are printed in the order of the candidates.
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <list>
#include <sstream>
#include <string>
#include <vector>

struct Tensor {
  std::string name;
  std::vector<int64_t> shape, whole;
  std::vector<float> real;
};

int main(int, char** arguments) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "score");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  Ort::Session session(env, arguments[1], options);
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  std::list<Tensor> tensors;  // a value points into its tensor, which must not move
  std::vector<const char*> names;
  std::vector<Ort::Value> values;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    Tensor& tensor = tensors.emplace_back();
    std::string type, word;
    size_t axes = 0;
    words >> tensor.name >> type >> axes;
    tensor.shape.resize(axes);
    for (int64_t& length : tensor.shape) words >> length;
    names.push_back(tensor.name.c_str());
    if (type == "int64") {
      while (words >> word) tensor.whole.push_back(std::stoll(word));
      values.push_back(Ort::Value::CreateTensor<int64_t>(memory, tensor.whole.data(), tensor.whole.size(),
                                                         tensor.shape.data(), axes));
    } else {
      while (words >> word) tensor.real.push_back(std::stof(word));
      values.push_back(
          Ort::Value::CreateTensor<float>(memory, tensor.real.data(), tensor.real.size(), tensor.shape.data(), axes));
    }
  }

  const char* score = "score";
  std::vector<Ort::Value> outputs =
      session.Run(Ort::RunOptions{nullptr}, names.data(), values.data(), values.size(), &score, 1);
  const float* found = outputs[0].GetTensorData<float>();
  size_t candidates = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount();
  for (size_t place = 0; place < candidates; ++place) std::printf("%.9g\n", found[place]);
}
