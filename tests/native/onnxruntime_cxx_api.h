// What docs/examples/score.cpp calls of ONNX Runtime's C++ interface, over the table of functions of its C interface.
//
// ONNX Runtime's Python package brings the library and no headers, so the test of the example compiles against this
// stand-in where the real header is not installed. A place in the table never changes from version to version.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

struct OrtApi;
struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase();

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

namespace Ort {

template <class... Arguments>
void* (*at(int place))(Arguments...) {
  auto table = reinterpret_cast<void* const*>(OrtGetApiBase()->GetApi(1));
  return reinterpret_cast<void* (*)(Arguments...)>(table[place]);
}

template <class... Arguments>
void call(int place, Arguments... arguments) {
  if (void* status = at<Arguments...>(place)(arguments...))
    throw std::runtime_error(static_cast<const char*>(at<void*>(2)(status)));  // GetErrorMessage
}

struct Handle {
  void* handle = nullptr;
};

struct Env : Handle {
  Env(OrtLoggingLevel level, const char* name) { call<int, const char*, void**>(3, level, name, &handle); }
};

struct SessionOptions : Handle {
  SessionOptions() { call<void**>(10, &handle); }
  void SetIntraOpNumThreads(int threads) { call<void*, int>(24, handle, threads); }
};

struct MemoryInfo : Handle {
  static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType type) {
    MemoryInfo made;
    call<int, int, void**>(69, allocator, type, &made.handle);
    return made;
  }
};

struct RunOptions : Handle {
  explicit RunOptions(std::nullptr_t) {}
};

struct TensorTypeAndShapeInfo : Handle {
  size_t GetElementCount() const {
    size_t count = 0;
    call<void*, size_t*>(64, handle, &count);
    return count;
  }
};

template <class T>
constexpr int element_type = 0;
template <>
constexpr int element_type<float> = 1;
template <>
constexpr int element_type<int64_t> = 7;

struct Value : Handle {
  template <class T>
  static Value CreateTensor(const MemoryInfo& memory, T* data, size_t count, const int64_t* shape, size_t axes) {
    Value made;
    call<void*, void*, size_t, const int64_t*, size_t, int, void**>(49, memory.handle, data, count * sizeof(T), shape,
                                                                    axes, element_type<T>, &made.handle);
    return made;
  }
  template <class T>
  const T* GetTensorData() const {
    void* data = nullptr;
    call<void*, void**>(51, handle, &data);
    return static_cast<T*>(data);
  }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
    TensorTypeAndShapeInfo info;
    call<void*, void**>(65, handle, &info.handle);
    return info;
  }
};

struct Session : Handle {
  Session(const Env& env, const char* path, const SessionOptions& options) {
    call<void*, const char*, void*, void**>(7, env.handle, path, options.handle, &handle);
  }
  std::vector<Value> Run(const RunOptions& options, const char* const* names, const Value* values, size_t count,
                         const char* const* output_names, size_t outputs) {
    std::vector<Value> found(outputs);
    static_assert(sizeof(Value) == sizeof(void*));
    call<void*, void*, const char* const*, const Value*, size_t, const char* const*, size_t, Value*>(
        9, handle, options.handle, names, values, count, output_names, outputs, found.data());
    return found;
  }
};

}  // namespace Ort
