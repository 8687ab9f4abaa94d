"""Healthy networks with parts that look wrong at first sight: unused, frozen, shared, gated, zero."""

from __future__ import annotations

import torch
from tests.labelled.evidence import learns
from tests.labelled.kit import bce_logits, ce, clusters, control, he, mlp, mse, sentences, xavier
from tests.labelled.saturated import Squashed
from tests.labelled.vanishing import GraphConv, Highway, random_graph
from tests.labelled.zero_by_construction import LoRALinear
from torch import nn
from torch.nn import functional as F

OK = "healthy control; "


@control(
    OK + "LoRA with B = 0 on a frozen net and a frozen head: A waits one step (Hu et al. 2022)", learns(0.05, lr=0.02)
)
def ok_lora_only():
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(
        LoRALinear(16, 32, 4, False), nn.ReLU(), LoRALinear(32, 32, 4, False), nn.ReLU(), LoRALinear(32, 4, 2, False)
    )
    return net, x, y, ce


class ManyTasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = mlp([16, 48, 32], nn.ReLU, he, out=nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(32, 4) for name in ("topic", "mood", "age")})

    def forward(self, x):
        h = self.trunk(x)
        return {name: head(h) for name, head in self.heads.items()}


@control(OK + "three heads answer, the batch has labels for one of them", learns(quiet="heads.mood.*,heads.age.*"))
def ok_heads_without_labels():
    x, y = clusters(96, 16, 4)
    return ManyTasks(), x, y, lambda out, t: ce(out["topic"], t)


@control(OK + "two losses whose weights differ by 1e-4", learns(0.01))
def ok_two_losses_of_unequal_weight():
    x, y = clusters(96, 16, 4)
    return (
        ManyTasks(),
        x,
        y,
        lambda out, t: ce(out["topic"], t) + 1e-4 * ce(out["mood"], (t + 1) % 4) + 1e-4 * ce(out["age"], t),
    )


class Switch(nn.Module):
    def __init__(self, experts=12):
        super().__init__()
        self.inp, self.router = nn.Linear(16, 24), nn.Linear(24, experts)
        self.experts = nn.ModuleList([mlp([24, 32, 24], nn.ReLU, he) for _ in range(experts)])
        self.out = nn.Linear(24, 4)

    def forward(self, x):
        h = torch.relu(self.inp(x))
        p = torch.softmax(self.router(h), 1)
        top, who = p.topk(2, 1)
        mixed = torch.zeros_like(h)
        for e, expert in enumerate(self.experts):
            row, slot = (who == e).nonzero(as_tuple=True)
            if len(row):
                mixed = mixed.index_add(0, row, top[row, slot, None] * expert(h[row]))
        return self.out(h + mixed)


@control(
    OK + "top-2 mixture of 12 experts on 16 samples: some experts see none (Shazeer et al. 2017)",
    learns(0.05, quiet="experts.*"),
)
def ok_top_two_experts():
    x, y = clusters(16, 16, 4)
    return Switch(), x, y, ce


class HyperNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.task, self.make = nn.Embedding(4, 8), nn.Linear(8, 16 * 4 + 4)
        nn.init.normal_(self.make.weight, std=0.1)

    def forward(self, pair):
        x, task = pair
        w = self.make(self.task(task))
        return torch.bmm(w[:, :64].view(-1, 4, 16), x[:, :, None]).squeeze(2) + w[:, 64:]


@control(OK + "hypernetwork: the weights of the classifier are another net's output (Ha et al. 2017)", learns(0.05))
def ok_hypernetwork():
    x, y = clusters(96, 16, 4)
    return HyperNet(), (x, torch.arange(96) % 3), y, ce


@control(OK + "highway net of 20 layers, gate bias -2 (Srivastava et al. 2015)", learns())
def ok_highway_bias_minus_two():
    x, y = clusters(96, 20, 4)
    return Highway(20, -2.0), x, y, ce


@control(OK + "PPO policy with a last layer of gain 0.01 (Andrychowicz et al. 2021)", learns(0.02))
def ok_policy_tiny_head():
    s = torch.randn(96, 6)
    return Squashed(0.01), s, 0.8 * torch.tanh(s[:, :2]), mse


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.policy, self.value = (
            mlp([8, 64, 64], nn.Tanh, nn.init.orthogonal_, out=nn.Tanh()),
            nn.Linear(64, 3),
            nn.Linear(64, 1),
        )
        nn.init.orthogonal_(self.policy.weight, 0.01), nn.init.orthogonal_(self.value.weight, 1.0)

    def forward(self, s):
        h = self.body(s)
        return self.policy(h), self.value(h)


@control(OK + "actor-critic with policy gradient, value and entropy losses", learns(0.02))
def ok_actor_critic():
    s = torch.randn(96, 8)
    action, advantage, value = torch.randint(0, 3, (96,)), torch.randn(96), torch.randn(96, 1)

    def loss(out, _):
        logp = F.log_softmax(out[0], 1)
        entropy = -(logp.exp() * logp).sum(1).mean()
        return -(logp[torch.arange(96), action] * advantage).mean() + 0.5 * mse(out[1], value) - 0.01 * entropy

    return ActorCritic(), s, value, loss


@control(OK + "two graph convolutions over a sparse normalised adjacency (Kipf & Welling 2017)", learns(0.02))
def ok_gcn_two_layers_sparse():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 24), nn.Linear(24, 2)
            self.register_buffer("adjacency", random_graph().to_sparse())

        def forward(self, x):
            h = torch.relu(torch.sparse.mm(self.adjacency, self.a(x)))
            return torch.sparse.mm(self.adjacency, self.b(h))

    x = torch.randn(60, 16)
    return Sparse(), x, (x[:, 0] > 0).long(), ce


@control(OK + "message passing with residual connections, 6 layers", learns(0.02))
def ok_gcn_residual_6():
    a = random_graph()
    x = torch.randn(60, 16)
    net = nn.Sequential(nn.Linear(16, 32), *[GraphConv(32, 32, a, skip=True) for _ in range(6)], nn.Linear(32, 2))
    return net, x, (x[:, 0] > 0).long(), ce


class ScalarGates(nn.Module):
    """Residual MLP whose branches carry a learned scale of 1e-2 (as SkipInit and Fixup keep them small)."""

    def __init__(self, blocks=16):
        super().__init__()
        self.inp, self.out = nn.Linear(16, 32), nn.Linear(32, 4)
        self.branches = nn.ModuleList([mlp([32, 32, 32], nn.ReLU, he) for _ in range(blocks)])
        self.scales = nn.Parameter(0.01 * torch.ones(blocks))

    def forward(self, x):
        h = self.inp(x)
        for scale, branch in zip(self.scales, self.branches, strict=True):
            h = h + scale * branch(h)
        return self.out(h)


@control(OK + "16 residual branches with a learned scale of 0.01 (De & Smith 2020, SkipInit)", learns())
def ok_skip_init_small():
    x, y = clusters(96, 16, 4)
    return ScalarGates(), x, y, ce


@control(
    OK + "stop-gradient target branch of BYOL/SimSiam: only the online branch trains (Chen & He 2021)", learns(0.02)
)
def ok_simsiam_stop_gradient():
    class SimSiam(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.predict = mlp([16, 64, 32], nn.ReLU, he), mlp([32, 16, 32], nn.ReLU, he)

        def forward(self, x):
            a, b = self.encode(x + 0.1), self.encode(0.9 * x)
            pa, pb = self.predict(a), self.predict(b)
            return -(F.cosine_similarity(pa, b.detach()).mean() + F.cosine_similarity(pb, a.detach()).mean()) / 2

    x, y = clusters(96, 16, 4)
    return SimSiam(), x, y, lambda out, _: out


@control(OK + "DQN: the target net is a frozen copy, one action's value per sample gets the loss", learns(0.05))
def ok_dqn_with_frozen_target():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.online, self.target = mlp([6, 48, 48, 3], nn.ReLU, he), mlp([6, 48, 48, 3], nn.ReLU, he)
            self.target.requires_grad_(False)

        def forward(self, s):
            with torch.no_grad():
                goal = 0.1 + 0.9 * self.target(s + 0.01).amax(1)
            return self.online(s).gather(1, (s[:, :1] > 0).long()).squeeze(1), goal

    return Agent(), torch.randn(96, 6), torch.zeros(96), lambda out, _: F.smooth_l1_loss(out[0], out[1])


@control(
    OK + "factorisation machine: tiny embeddings N(0, 0.01) multiply each other (Rendle 2010)", learns(0.02, lr=0.01)
)
def ok_factorisation_machine():
    class FM(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.factor = nn.Embedding(200, 1), nn.Embedding(200, 8)
            nn.init.zeros_(self.linear.weight), nn.init.normal_(self.factor.weight, std=0.01)

        def forward(self, ids):
            v = self.factor(ids)
            return self.linear(ids).sum(1) + 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1, keepdim=True)

    ids = torch.randint(0, 200, (96, 5))
    return FM(), ids, (ids[:, :1] % 2).float(), bce_logits


@control(OK + "word2vec: input vectors U(±1/2d), output vectors zero (Mikolov et al. 2013)", learns(0.02, lr=0.02))
def ok_skip_gram_zero_output():
    class SkipGram(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.context = nn.Embedding(100, 16), nn.Embedding(100, 16)
            nn.init.uniform_(self.word.weight, -1 / 32, 1 / 32), nn.init.zeros_(self.context.weight)

        def forward(self, pair):
            return (self.word(pair[:, 0]) * self.context(pair[:, 1])).sum(1)

    pair = torch.randint(0, 100, (128, 2))
    return SkipGram(), pair, ((pair[:, 0] + pair[:, 1]) % 2).float(), bce_logits


@control(OK + "binary weights with a straight-through estimator (Courbariaux et al. 2015)", learns(0.05))
def ok_binary_straight_through():
    class Binary(nn.Linear):
        def forward(self, x):
            w = self.weight.clamp(-1, 1)
            return F.linear(x, w + (self.weight.sign() - w).detach(), self.bias) / self.in_features**0.5

    x, y = clusters(96, 16, 4)
    return (
        nn.Sequential(
            Binary(16, 64),
            nn.BatchNorm1d(64),
            nn.Hardtanh(),
            Binary(64, 64),
            nn.BatchNorm1d(64),
            nn.Hardtanh(),
            nn.Linear(64, 4),
        ),
        x,
        y,
        ce,
    )


@control(OK + "embedding with max_norm 1 (renormalised in place in the forward pass)", learns(0.05))
def ok_embedding_max_norm():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 16, max_norm=1.0), nn.Linear(16, 5)

        def forward(self, t):
            return self.head(self.embed(t).mean(1))

    x, y = sentences()
    return Bag(), x, y, ce


@control(OK + "neural ODE by 30 Euler steps of one shared field, dt = 1/30 (Chen et al. 2018)", learns(0.05))
def ok_neural_ode_euler():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.field, self.out = nn.Linear(16, 24), mlp([24, 32, 24], nn.Tanh, xavier), nn.Linear(24, 4)

        def forward(self, x):
            h = self.inp(x)
            for _ in range(30):
                h = h + self.field(h) / 30
            return self.out(h)

    x, y = clusters(96, 16, 4)
    return Flow(), x, y, ce


@control(OK + "wide and deep: a linear tower beside a ReLU tower (Cheng et al. 2016)", learns(0.05))
def ok_wide_and_deep():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.deep = nn.Linear(16, 1), mlp([16, 48, 48, 48, 1], nn.ReLU, he)

        def forward(self, x):
            return self.wide(x) + self.deep(x)

    x, y = clusters(96, 16, 2)
    return Net(), x, y[:, None].float(), bce_logits
