"""Evidence heads: the user's feedback on earlier items, weighted by similarity to the target and by recency.

Shapes: R rows, Q histories (R, or 1 that all rows share), S positions, H heads, V values of an event, K similarity
spaces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.history.similarity_features import MOST_DEVIATIONS
from ctr.history.target_history import TargetHistory
from features.store.schema import PADDING, Field

# exp(15) events of weight 1: a kernel beyond it would only cost digits.
LARGEST_LOG_WEIGHT = 15.0
FIRST_SHARPNESS = 4.0  # exp(4 cos): the best of the single fixed kernels that were tried
# κ, λ, τ and log ρ are ten times the stored parameters. Adam moves a parameter by about one learning rate a step, a
# thousandth, while κ has to move by tens; so these move ten times as fast. A parameter group with ten times the rate
# would do the same, but for the gradient norm, in which these gradients would then count a tenth.
PARAMETER_SCALE = 10.0


class EvidenceHeads(nn.Module):
    """Kernel regression over the events of a history; each head has a learned kernel over the similarities.

        w_hs = m_s exp(Σ_k (κ_hk cos_k(t, s) - max(κ_hk, 0)) + λ_h (P x_t)·(P x_s) - τ_h log(1 + events after s))
        o_h  = [Σ_s w_hs v_s / (ρ_h + Σ_s w_hs) ; log(ρ_h + Σ_s w_hs)],   v_s = Σ_f T_f[e_sf] + W [numbers of s]

    Frozen similarities alone give a weight of at most 1, that of the same item; ρ is in units of such events.
    (Nadaraya 1964, Watson 1964, with the prior weight ρ of a shrunk mean; the similarities are the frozen ones of
    MUSE and DMF, see docs/models.md.) The values come from the event's feedback (label, rating, residual against the
    item's mean), so a disliked item counts as much as a liked one. The kernel compares items by content, so a head
    works for an item without any clicks. An empty history gives 0 and log ρ.

    Args:
        fields: event columns, categorical or numeric. Without any, every event has the value 1.
        spaces: K.
        item_dim: width of x.
        heads: H.
        values: V; 1 where there are no event columns.
        match_dim: width of P.
    """

    def __init__(
        self, fields: Sequence[Field], spaces: int, item_dim: int, heads: int, values: int, match_dim: int
    ) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.values = values = values if fields else 1
        indexed = [field for field in self.fields if field.kind == "categorical"]
        numbers = len(self.fields) - len(indexed)
        self.tables = nn.ModuleList(nn.Embedding(field.size, values, padding_idx=PADDING) for field in indexed)
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight[1:], std=0.1)
        self.numeric = nn.Linear(2 * numbers, values, bias=False) if numbers else None
        if self.numeric is not None:
            nn.init.normal_(self.numeric.weight, mean=1.0, std=0.1)
            with torch.no_grad():
                # A missing number has the value 0 until training finds another.
                self.numeric.weight[:, numbers:] = 0
        self.kernel = nn.Linear(spaces + 1, heads, bias=False)
        nn.init.normal_(self.kernel.weight)
        with torch.no_grad():
            # Each head starts with a sharp kernel in one space, twice as sharp each time a space comes again: heads
            # that start the same would stay the same.
            for head in range(heads if spaces else 0):
                self.kernel.weight[head, head % spaces] += FIRST_SHARPNESS * 2 ** (head // spaces)
            self.kernel.weight /= PARAMETER_SCALE
        self.projection = nn.Linear(item_dim, match_dim, bias=False)
        self.forgetting = nn.Parameter(torch.full((heads,), 0.1 / PARAMETER_SCALE))
        self.log_prior = nn.Parameter(torch.zeros(heads))
        self.width = heads * (values + 1)
        self.norm = nn.BatchNorm1d(self.width)

    def forward(self, history: TargetHistory) -> Tensor:
        """Normalised means and log masses of all heads, [R, width]; float32 under autocast, too."""
        with torch.autocast(history.target_RD.device.type, enabled=False):
            # Padding counts nothing. The mass is the sum of the weights of one value more, which is 1 at each event.
            known_QS1 = history.mask.unsqueeze(-1)
            values_QSV = torch.cat([self._values(history) * known_QS1, known_QS1], dim=-1) if self.fields else known_QS1
            sums_RHV = history.pooled(self._kernels(history), values_QSV)
            mass_RH = sums_RHV[..., -1] + self._prior()
            # Without event columns the one value is that 1.
            pooled_RHV = sums_RHV[..., : self.values] / mass_RH.unsqueeze(-1)
            normed: Tensor = self.norm(torch.cat([pooled_RHV.flatten(1), mass_RH.log()], dim=-1))
            return normed.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)

    def weights(self, history: TargetHistory) -> Tensor:
        """Each event's share of what a head reads, the prior's included, as a mean over heads, [R, S]."""
        weights_HRS = self._kernels(history) * history.mask
        mass_HR1 = weights_HRS.sum(dim=-1, keepdim=True) + self._prior().view(-1, 1, 1)
        return (weights_HRS / mass_HR1).mean(dim=0)

    def _kernels(self, history: TargetHistory) -> Tensor:
        """The weight w of each event, [H, R, S]; that of padding is arbitrary."""
        learned_1RS = history.learned_similarity(self.projection).to(self.log_prior.dtype).unsqueeze(0)
        frozen = [history.similarities] if self.kernel.in_features > 1 else []
        sharpness_HK = PARAMETER_SCALE * self.kernel.weight
        decay_H = PARAMETER_SCALE * self.forgetting
        # Σ_k max(κ_hk, 0), the largest that the frozen similarities, each from -1 to 1, can add; the last column is λ.
        largest_H = torch.relu(sharpness_HK[:, :-1]).sum(dim=1)
        # All heads are one product over the similarities, laid out so that the events of a row follow each other.
        similar_KRS = torch.cat([*frozen, learned_1RS])
        log_HRS = (sharpness_HK @ similar_KRS.flatten(1)).unflatten(1, similar_KRS.shape[1:])
        lost_HS = largest_H.unsqueeze(-1) + decay_H.unsqueeze(-1) * history.recency
        return (log_HRS - lost_HS.unsqueeze(1)).clamp(-LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT).exp()

    def _prior(self) -> Tensor:
        return (PARAMETER_SCALE * self.log_prior).exp()

    def _values(self, history: TargetHistory) -> Tensor:
        """The values of each event, [Q, S, V]; those of padding are arbitrary."""
        tables, numbers, parts = iter(self.tables), [], []
        for field, column in zip(self.fields, history.columns, strict=True):
            if field.kind == "categorical":
                parts.append(next(tables)(column))
            else:
                numbers.append(column)
        if self.numeric is not None:
            known = torch.stack(numbers, dim=-1).to(self.log_prior.dtype)
            missing = torch.isnan(known)
            filled = torch.where(missing, torch.zeros_like(known), known)
            parts.append(self.numeric(torch.cat([filled, missing.to(known.dtype)], dim=-1)))
        return torch.stack(parts).sum(dim=0)
