"""What fields say together: interaction layers, each a small module beside its formula.

A field is one thing that is known of a pair, such as the user's number, the item's genres or the user's age
group. It comes as a vector. A sum of weights, one a field, can say that young people rate higher and that
comedies are rated higher, and never that young people rate comedies higher. That takes products, and these
layers differ in which.

Shapes: B pairs, F fields, d the length of a field's vector, P = F (F - 1) / 2 pairs of fields in the order
(0, 1), (0, 2), ... All layers take (B, F, d) and return (B, ``n_outputs``).
"""

import torch
from torch import Tensor, nn

__all__ = ["CrossNetwork", "FactorizationMachine", "InnerProducts", "OuterProducts", "pairs_of_fields"]


def pairs_of_fields(n_fields: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The first and the second field of each pair, (P,) int64 each; none where there is one field."""
    first, second = torch.triu_indices(n_fields, n_fields, offset=1, device=device)  # (P,), (P,)
    return first, second


class FactorizationMachine(nn.Module):
    """The sum of all inner products of two fields, in linear time.

        sum_{f < g} e_f . e_g = 1/2 (|sum_f e_f|^2 - sum_f |e_f|^2)

    It has no weights of its own. The left side takes F (F - 1) / 2 products of d numbers, the right side F.
    Where a field is a mean of several values, as genres are, the values of one field do not meet.

    Source: Rendle 2010, "Factorization Machines", eq. 1 and lemma 3.1.
    """

    n_outputs = 1

    def forward(self, e: Tensor) -> Tensor:
        """(B, F, d) to (B, 1)."""
        total = e.sum(dim=1)  # (B, d)
        return 0.5 * (total.square() - e.square().sum(dim=1)).sum(dim=1, keepdim=True)


class InnerProducts(nn.Module):
    """The inner product of each two fields, as a feature of its own: p_fg = e_f . e_g.

    A factorization machine adds them up; what reads these can weigh them.

    Source: Qu et al. 2016, "Product-based Neural Networks for User Response Prediction", section III.B.
    """

    def __init__(self, n_fields: int) -> None:
        super().__init__()
        self.n_outputs = n_fields * (n_fields - 1) // 2

    def forward(self, e: Tensor) -> Tensor:
        """(B, F, d) to (B, P)."""
        first, second = pairs_of_fields(e.shape[1], e.device)  # (P,), (P,)
        return (e[:, first] * e[:, second]).sum(dim=2)


class OuterProducts(nn.Module):
    """The outer product of each two fields, read by a matrix of the pair: a bilinear form.

        p_fg = sum_{a, b} W_fg[a, b] (e_f e_g^T)[a, b] = e_f^T W_fg e_g
        W_fg = U_fg V_fg^T with U_fg and V_fg (d, rank), where a rank is given

    With the unit matrix for W it is the inner product. The full matrices hold P d^2 weights, the factorized
    ones 2 P d rank, and the outer products themselves are never made.

    Source: Qu et al. 2016, "Product-based Neural Networks for User Response Prediction", section III.C, which
    shares one matrix among all pairs to save time; a matrix for each pair is Huang, Zhang, Zhang 2019,
    "FiBiNET", section 3.3, "field-interaction type", where the products stay vectors.

    Args:
        n_fields: F.
        dim: d.
        rank: of the matrices; None for full ones.
    """

    def __init__(self, n_fields: int, dim: int, rank: int | None = None) -> None:
        super().__init__()
        self.n_outputs = n_fields * (n_fields - 1) // 2
        width = dim if rank is None else rank
        # So wide that the form is as large as an inner product of the same vectors at the start.
        self.left = nn.Parameter(torch.randn(self.n_outputs, dim, width) / width**0.5)
        self.right = None
        if rank is not None:
            self.right = nn.Parameter(torch.randn(self.n_outputs, dim, rank) / dim**0.5)

    def forward(self, e: Tensor) -> Tensor:
        """(B, F, d) to (B, P)."""
        first, second = pairs_of_fields(e.shape[1], e.device)  # (P,), (P,)
        a = torch.einsum("bpd,pdr->bpr", e[:, first], self.left)  # (B, P, r), r is d for full matrices
        b = e[:, second]  # (B, P, d)
        if self.right is not None:
            b = torch.einsum("bpd,pdr->bpr", b, self.right)  # (B, P, r)
        return (a * b).sum(dim=2)


class CrossNetwork(nn.Module):
    """Layers that each multiply by the input once more: after l of them, products of up to l + 1 numbers.

        x_0     = all fields' vectors, one after another, F d numbers
        x_{l+1} = x_0 * (W_l x_l + b_l) + x_l,      * elementwise
        W_l     = U_l V_l^T with U_l and V_l (F d, rank), where a rank is given

    Source: Wang et al. 2021, "DCN V2: Improved Deep & Cross Network", eqs. 1 and 2; the first version (Wang,
    Fu, Fu, Wang 2017) has a vector in place of the matrix.

    Args:
        n_fields: F.
        dim: d.
        n_layers: how often the input is multiplied.
        rank: of the matrices; None for full ones.
    """

    def __init__(self, n_fields: int, dim: int, n_layers: int = 2, rank: int | None = None) -> None:
        super().__init__()
        self.n_outputs = size = n_fields * dim

        def layer() -> nn.Module:
            if rank is None:
                return nn.Linear(size, size)
            return nn.Sequential(nn.Linear(size, rank, bias=False), nn.Linear(rank, size))

        self.layers = nn.ModuleList(layer() for _ in range(n_layers))

    def forward(self, e: Tensor) -> Tensor:
        """(B, F, d) to (B, F d)."""
        start = x = e.flatten(1)  # (B, F d)
        for layer in self.layers:
            x = start * layer(x) + x  # (B, F d)
        return x
