"""Healthy networks for sequences and tokens: transformers, recurrent nets, text CNNs."""

from __future__ import annotations

import math

import torch
from tests.labelled.evidence import learns, steady_in_time
from tests.labelled.kit import ce, ce_tokens, control, first_step_decides, he, mlp, mse, pictures, sentences, standard
from tests.labelled.through_time import LastState, set_gate_bias
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

OK = "healthy control; "


class Block(nn.Module):
    """Pre-norm causal or bidirectional block; ``scale`` is a LayerScale value."""

    def __init__(self, d, heads=4, causal=False, scale=None):
        super().__init__()
        self.n1, self.n2, self.heads, self.causal = nn.LayerNorm(d), nn.LayerNorm(d), heads, causal
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.g1 = None if scale is None else nn.Parameter(scale * torch.ones(d))
        self.g2 = None if scale is None else nn.Parameter(scale * torch.ones(d))

    def attend(self, h):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))

    def forward(self, x):
        a = self.attend(self.n1(x))
        x = x + (a if self.g1 is None else self.g1 * a)
        f = self.down(F.gelu(self.up(self.n2(x))))
        return x + (f if self.g2 is None else self.g2 * f)


class Transformer(nn.Module):
    def __init__(self, layers, d=32, vocabulary=40, out=5, causal=False, scale=None, tied=False, std=None):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, d), nn.Parameter(0.02 * torch.randn(16, d))
        self.blocks = nn.ModuleList([Block(d, 4, causal, scale) for _ in range(layers)])
        self.norm, self.head, self.causal = nn.LayerNorm(d), nn.Linear(d, out, bias=False), causal
        if std:
            for m in self.modules():
                if isinstance(m, nn.Linear | nn.Embedding):
                    nn.init.normal_(m.weight, std=std)
                if isinstance(m, nn.Linear) and m.bias is not None:
                    nn.init.zeros_(m.bias)
            for b in self.blocks:
                for lin in (b.proj, b.down):
                    nn.init.normal_(lin.weight, std=std / math.sqrt(2 * layers))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, t):
        h = self.embed(t) + self.place[: t.shape[1]]
        for b in self.blocks:
            h = b(h)
        h = self.norm(h)
        return self.head(h if self.causal else h.mean(1))


@control(OK + "pre-norm encoder of 24 layers", learns(0.02, lr=1e-3))
def ok_pre_norm_24():
    x, y = sentences()
    return Transformer(24), x, y, ce


@control(
    OK + "GPT-2-like: causal, N(0, 0.02), residual projections scaled by 1/√(2L), tied head (Radford et al. 2019)",
    learns(0.01, lr=1e-3),
)
def ok_gpt_tied_small_init():
    x, _ = sentences(16, 13)
    return Transformer(6, 48, 40, 40, causal=True, tied=True, std=0.02), x[:, :-1], x[:, 1:], ce_tokens


@control(OK + "LayerScale 1e-4 (Touvron et al. 2021, CaiT)", learns(0.02))
def ok_layer_scale_1e_4():
    x, y = sentences()
    return Transformer(8, scale=1e-4), x, y, ce


class Bert(nn.Module):
    def __init__(self, layers=4, d=32):
        super().__init__()
        self.word, self.place, self.kind = nn.Embedding(40, d, padding_idx=0), nn.Embedding(16, d), nn.Embedding(2, d)
        self.norm, self.drop = nn.LayerNorm(d), nn.Dropout(0.1)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 4, 4 * d, 0.1, "gelu", batch_first=True), layers, enable_nested_tensor=False
        )
        self.pooler, self.head = nn.Linear(d, d), nn.Linear(d, 5)
        for m in self.modules():
            if isinstance(m, nn.Linear | nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)

    def forward(self, t):
        h = self.word(t) + self.place(torch.arange(t.shape[1])) + self.kind(torch.zeros_like(t))
        h = self.encoder(self.drop(self.norm(h)), src_key_padding_mask=t == 0)
        return self.head(torch.tanh(self.pooler(h[:, 0])))


@control(
    OK + "BERT-like: post-norm, N(0, 0.02), padding mask, dropout, pooler (Devlin et al. 2019)", learns(0.02, lr=1e-3)
)
def ok_bert_like():
    x, y = sentences()
    x[:, 9:] = 0
    return Bert(), x, y, ce


class ViT(nn.Module):
    def __init__(self, layers=6, d=32):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, d, 4, 4), nn.Parameter(torch.zeros(1, 1, d))
        self.place = nn.Parameter(0.02 * torch.randn(1, 10, d))
        self.blocks, self.norm, self.head = (
            nn.Sequential(*[Block(d) for _ in range(layers)]),
            nn.LayerNorm(d),
            nn.Linear(d, 6),
        )
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)

    def forward(self, x):
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls.expand(len(h), -1, -1), h], 1) + self.place
        return self.head(self.norm(self.blocks(h))[:, 0])


@control(OK + "ViT with class token and zero-initialised head (Dosovitskiy et al. 2021)", learns(0.05, lr=1e-3))
def ok_vit_zero_head():
    x, y = pictures(24, 3, 12)
    return ViT(), standard(x), y, ce


class ReZero(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.attention, self.ff, self.alpha = (
            nn.MultiheadAttention(d, 4, batch_first=True),
            mlp([d, 64, d], nn.ReLU),
            nn.Parameter(torch.zeros(())),
        )

    def forward(self, x):
        x = x + self.alpha * self.attention(x, x, x, need_weights=False)[0]
        return x + self.alpha * self.ff(x)


class ReZeroNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.head = (
            nn.Embedding(40, 32),
            nn.Sequential(*[ReZero(32) for _ in range(12)]),
            nn.Linear(32, 5),
        )

    def forward(self, t):
        return self.head(self.blocks(self.embed(t)).mean(1))


@control(OK + "ReZero transformer: alpha 0, no normalisation (Bachlechner et al. 2020)", learns(0.05))
def ok_rezero_transformer():
    x, y = sentences()
    return ReZeroNet(), x, y, ce


@control(OK + "GRU over 10 steps, last state", learns(0.02))
def ok_gru_10_steps():
    x, y = first_step_decides(48, 10)
    return LastState(nn.GRU(3, 32, batch_first=True), 32), x, y, ce


@control(OK + "LSTM with forget bias 1 over 10 steps (Jozefowicz et al. 2015)", learns(0.02))
def ok_lstm_forget_bias_one():
    x, y = first_step_decides(48, 10)
    return LastState(set_gate_bias(nn.LSTM(3, 32, batch_first=True), 1, 1.0, 32), 32), x, y, ce


@control(
    OK + "orthogonal tanh RNN on weak inputs over 60 steps (Henaff et al. 2016)", (steady_in_time(1.0), learns(0.02))
)
def ok_orthogonal_rnn_60():
    x, y = first_step_decides(48, 60)
    rnn = nn.RNN(3, 48, batch_first=True)
    nn.init.orthogonal_(rnn.weight_hh_l0)
    rnn.bias_ih_l0.data.zero_(), rnn.bias_hh_l0.data.zero_()
    return LastState(rnn, 48), 0.2 * x, y, ce


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = (
            nn.Embedding(40, 16, padding_idx=0),
            nn.LSTM(16, 16, batch_first=True, bidirectional=True),
            nn.Linear(32, 4),
        )

    def forward(self, t):
        lengths = (t > 0).sum(1)
        packed = pack_padded_sequence(self.embed(t), lengths, batch_first=True, enforce_sorted=False)
        return self.out(pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=t.shape[1])[0])


@control(
    OK + "bidirectional LSTM tagger over packed sequences of 3 to 20 tokens, padding ignored in the loss", learns(0.02)
)
def ok_packed_tagger():
    x = torch.randint(1, 40, (24, 20))
    for i in range(24):
        x[i, 3 + (i * 7) % 18 :] = 0
    return Tagger(), x, torch.where(x > 0, x % 4, -100), ce_tokens


@control(
    OK + "a long series whose loss sits at every step and whose target is local: the far past is not needed",
    learns(0.02),
)
def ok_per_step_loss_long_rnn():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.RNN(3, 24, batch_first=True), nn.Linear(24, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[0])

    x = torch.randn(24, 80, 3)
    return Net(), x, torch.sin(x[:, :, :1]), mse


class TextCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(400, 16, padding_idx=0)
        self.convs = nn.ModuleList([nn.Conv1d(16, 12, k, padding=k // 2) for k in (3, 4, 5)])
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(36, 5)

    def forward(self, t):
        h = self.embed(t).transpose(1, 2)
        return self.out(self.drop(torch.cat([F.relu(c(h)).amax(2) for c in self.convs], 1)))


@control(OK + "text CNN with max over time (Kim 2014), most embedding rows untouched", learns(0.05))
def ok_text_cnn():
    x, y = sentences(24, 12, 60)
    return TextCNN(), x, y, ce


class GLUStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.out = nn.Conv1d(3, 16, 1), nn.Linear(16, 2)
        self.layers = nn.ModuleList([nn.Conv1d(16, 32, 3, padding=2**i, dilation=2**i) for i in range(4)])

    def forward(self, x):
        h = self.inp(x.transpose(1, 2))
        for layer in self.layers:
            h = h + F.glu(layer(h), 1)
        return self.out(h.mean(2))


@control(OK + "gated dilated convolutions with skips (van den Oord et al. 2016, Dauphin et al. 2017)", learns(0.02))
def ok_gated_dilated_convolutions():
    x, y = first_step_decides(32, 24)
    return GLUStack(), x, y, ce


class SparseBag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.net = nn.EmbeddingBag(5000, 16, mode="mean", sparse=True), mlp([16, 32, 5], nn.ReLU, he)

    def forward(self, t):
        return self.net(self.bag(t))


@control(OK + "sparse EmbeddingBag of 5000 rows, 40 used", learns(0.0, lr=1e-3))
def ok_sparse_embedding_bag():
    x, y = sentences()
    return SparseBag(), x, y, ce


class AttentionPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.query, self.head = nn.Embedding(40, 24), nn.Parameter(0.1 * torch.randn(24)), nn.Linear(24, 5)

    def forward(self, t):
        h = self.embed(t)
        a = torch.softmax(h @ self.query, 1)
        return self.head((a[..., None] * h).sum(1))


@control(OK + "softmax attention pooling with a learned query", learns(0.05))
def ok_attention_pooling():
    x, y = sentences()
    return AttentionPool(), x, y, ce


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.memory = nn.Embedding(40, 32), nn.Linear(8, 32)
        self.cross, self.norm, self.out = (
            nn.MultiheadAttention(32, 4, batch_first=True),
            nn.LayerNorm(32),
            nn.Linear(32, 10),
        )

    def forward(self, batch):
        q, m = self.query(batch["tokens"]), self.memory(batch["frames"])
        return self.out(self.norm(q + self.cross(q, m, m, key_padding_mask=batch["pad"])[0]))


@control(OK + "cross-attention with a dictionary of inputs and a padding mask", learns(0.02))
def ok_cross_attention_dict_input():
    x = {
        "tokens": torch.randint(0, 40, (16, 6)),
        "frames": torch.randn(16, 9, 8),
        "pad": torch.zeros(16, 9, dtype=torch.bool),
    }
    x["pad"][:, 6:] = True
    return TwoInputs(), x, x["tokens"] % 10, ce_tokens
