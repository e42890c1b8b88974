"""Evidence heads: what a user said of items like the target, weighed by how alike and how recent they are.

Shapes: R rows, S positions, H heads, V values an event, K similarity spaces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.history.similarity_features import MOST_DEVIATIONS
from ctr.history.target_history import Past
from features.store.schema import PADDING, Field

# exp(15) events of weight 1: a kernel beyond it would only cost digits.
LARGEST_LOG_WEIGHT = 15.0
FIRST_SHARPNESS = 4.0  # weights exp(4 cos) are where a single fixed kernel does best
# Optimizer steps move a weight by thousandths, and sharpness wants to move by tens: what is learned is a tenth of it.
STRIDE = 10.0


class EvidenceHeads(nn.Module):
    """Kernel regression over the past, with kernels that are learned: each head is one way of being alike.

        w_hs = m_s exp(Σ_k (κ_hk cos_k(t, s) - max(κ_hk, 0)) + λ_h (P x_t)·(P x_s) - τ_h log(1 + events after s))
        o_h  = [Σ_s w_hs v_s / (ρ_h + Σ_s w_hs) ; log(ρ_h + Σ_s w_hs)],   v_s = Σ_f T_f[e_sf] + W [numbers of s]

    Frozen similarities give a weight of at most 1, that of the very same item, in which the prior weight ρ is counted.
    (Nadaraya 1964, Watson 1964, with the prior weight ρ of a shrunk mean; the similarities are the frozen ones of
    MUSE and DMF, see docs/models.md.) The values are read straight from the event's feedback (label, rating, residual
    against the item's mean), so that a disliked item speaks as loud as a liked one, and content alone says whom it
    speaks of: a head works on the first day of a new item. An empty past gives 0 and log ρ.

    Args:
        fields: event columns, categorical or numeric. Without any, an event says just that it was there.
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
        values = values if fields else 1
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
                # A missing number says nothing until training shows one that does.
                self.numeric.weight[:, numbers:] = 0
        self.kernel = nn.Linear(spaces + 1, heads, bias=False)
        nn.init.normal_(self.kernel.weight)
        with torch.no_grad():
            # Each head starts sharp in one of the spaces, twice as sharp each time a space comes again: heads that
            # start alike stay alike.
            for head in range(heads if spaces else 0):
                self.kernel.weight[head, head % spaces] += FIRST_SHARPNESS * 2 ** (head // spaces)
            self.kernel.weight /= STRIDE
        self.projection = nn.Linear(item_dim, match_dim, bias=False)
        self.forgetting = nn.Parameter(torch.full((heads,), 0.1 / STRIDE))
        self.log_prior = nn.Parameter(torch.zeros(heads))
        self.width = heads * (values + 1)
        self.norm = nn.BatchNorm1d(self.width)

    def forward(self, past: Past) -> Tensor:
        """[R, width]."""
        with torch.autocast(past.target_RD.device.type, enabled=False):
            weights_RHS = self._weights(past)
            mass_RH = weights_RHS.sum(dim=-1) + self._prior()
            pooled_RHV = (weights_RHS @ self._values(past)) / mass_RH.unsqueeze(-1)
            normed: Tensor = self.norm(torch.cat([pooled_RHV.flatten(1), mass_RH.log()], dim=-1))
            return normed.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)

    def weights(self, past: Past) -> Tensor:
        """Each event's share of what a head reads, the prior's included, as a mean over heads, [R, S]."""
        weights_RHS = self._weights(past)
        mass_RH1 = weights_RHS.sum(dim=-1, keepdim=True) + self._prior().unsqueeze(-1)
        return (weights_RHS / mass_RH1).mean(dim=1)

    def _weights(self, past: Past) -> Tensor:
        learned_RS1 = past.match(self.projection).to(self.log_prior.dtype).unsqueeze(-1)
        frozen = [past.similarities] if self.kernel.in_features > 1 else []
        kernel_HK = STRIDE * self.kernel.weight
        log_RSH = F.linear(
            torch.cat([*frozen, learned_RS1], dim=-1), kernel_HK, -torch.relu(kernel_HK[:, :-1]).sum(dim=1)
        )
        log_RSH = log_RSH - STRIDE * past.places.unsqueeze(-1) * self.forgetting
        weights_RSH = log_RSH.clamp(-LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT).exp() * past.mask.unsqueeze(-1)
        return weights_RSH.transpose(1, 2)

    def _prior(self) -> Tensor:
        return (STRIDE * self.log_prior).exp()

    def _values(self, past: Past) -> Tensor:
        """What each event says, [histories, S, V]; whatever padding says has no weight."""
        tables, numbers, parts = iter(self.tables), [], []
        for field, column in zip(self.fields, past.columns, strict=True):
            if field.kind == "categorical":
                parts.append(next(tables)(column))
            else:
                numbers.append(column)
        if not self.fields:
            return past.mask.unsqueeze(-1)
        if self.numeric is not None:
            known = torch.stack(numbers, dim=-1).to(self.log_prior.dtype)
            missing = torch.isnan(known)
            filled = torch.where(missing, torch.zeros_like(known), known)
            parts.append(self.numeric(torch.cat([filled, missing.to(known.dtype)], dim=-1)))
        return torch.stack(parts).sum(dim=0)
