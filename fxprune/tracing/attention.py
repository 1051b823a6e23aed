"""Multi-head attention as products of matrices, in the place of PyTorch's single call.

`F.multi_head_attention_forward`, which `nn.MultiheadAttention` calls, asserts that the heads fill
the embedding: neither could get narrower without the other. Taken apart, the heads are a dimension
of their own, and the embedding is that of the layers around it.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.tracing.proxies import KnowingTracer


def attention_followed(tracer: KnowingTracer) -> tuple[tuple[Any, str, Callable[..., Any]], ...]:
    """Return what takes the place of PyTorch's attention during a trace: owner, name, function."""
    function, method = F.multi_head_attention_forward, nn.MultiheadAttention.forward
    return (
        (F, "multi_head_attention_forward", _of_function(function, tracer)),
        (nn.MultiheadAttention, "forward", _of_module(method, tracer)),
    )


def _of_function(plain: Callable[..., Any], tracer: KnowingTracer) -> Callable[..., Any]:
    signature = inspect.signature(plain)

    def called(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        call = SimpleNamespace(**given.arguments)
        if tracer.looking or not any(isinstance(x, fx.Proxy) for x in given.arguments.values()):
            return plain(*args, **kwargs)
        if not _is_usual(call, tracer):
            return tracer.create_proxy("call_function", plain, args, kwargs)
        output, weights = _attended(call)
        if isinstance(weights, fx.Proxy):
            tracer.spare.append(weights.node)  # most code asks for them and leaves them
        return output, weights

    return called


def _of_module(plain: Callable[..., Any], tracer: KnowingTracer) -> Callable[..., Any]:
    def forward(
        self: nn.MultiheadAttention,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        options = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        if tracer.looking or _rank(query, tracer) != 3:
            return plain(self, query, key, value, *options)
        if self.batch_first:  # one for each of them: where they are one, they stay one
            turned = {id(x): x.transpose(0, 1) for x in (query, key, value)}
            query, key, value = (turned[id(x)] for x in (query, key, value))
        output, weights = F.multi_head_attention_forward(
            *(query, key, value, self.embed_dim, self.num_heads),
            *(self.in_proj_weight, self.in_proj_bias, self.bias_k, self.bias_v),
            *(self.add_zero_attn, self.dropout, self.out_proj.weight, self.out_proj.bias),
            *(bool(self.dropout) and self.training, *options[:3]),
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (output.transpose(0, 1) if self.batch_first else output), weights

    return forward


def _is_usual(call: SimpleNamespace, tracer: KnowingTracer) -> bool:
    """Tell whether a call takes a batch, and has nothing that only PyTorch's function knows."""
    rare = (call.bias_k, call.bias_v, call.static_k, call.static_v)
    return (
        all(part is None for part in rare)
        and not call.add_zero_attn
        and _rank(call.query, tracer) == 3
        and (call.attn_mask is None or _rank(call.attn_mask, tracer) == 2)
        and not (call.is_causal and call.attn_mask is None)
    )


def _rank(value: Any, tracer: KnowingTracer) -> int | None:
    return value.dim() if isinstance(value, Tensor) else tracer.rank(value.node)


def _attended(call: SimpleNamespace) -> tuple[Any, Any]:
    """Compute attention of [L, N, E] over [S, N, E]; the weights only if they are needed."""
    heads, width = int(call.num_heads), int(call.embed_dim_to_check)
    size = width // heads
    q, k, v = (x.unflatten(2, (heads, size)).permute(1, 2, 0, 3) for x in _projected(call))
    mask = _mask(call)
    weights = None
    if call.need_weights:
        scores = (q * size**-0.5).matmul(k.transpose(2, 3))
        weights = (scores if mask is None else scores + mask).softmax(-1)
        if call.dropout_p:
            weights = F.dropout(weights, call.dropout_p, call.training)
        output = weights.matmul(v)
        weights = weights.mean(1) if call.average_attn_weights else weights
    else:
        dropout = call.dropout_p if call.dropout_p and call.training else 0.0
        causal = call.is_causal and call.key_padding_mask is None
        output = F.scaled_dot_product_attention(
            q, k, v, None if causal else mask, dropout, causal, scale=size**-0.5
        )
    output = output.permute(2, 0, 1, 3).flatten(2)
    return F.linear(output, call.out_proj_weight, call.out_proj_bias), weights


def _projected(call: SimpleNamespace) -> Any:
    """Return queries, keys and values before they are split into heads."""
    bias = call.in_proj_bias
    one = call.query is call.key and call.key is call.value
    if one and not call.use_separate_proj_weight:
        return F.linear(call.query, call.in_proj_weight, bias).chunk(3, -1)
    if call.use_separate_proj_weight:
        weights = (call.q_proj_weight, call.k_proj_weight, call.v_proj_weight)
    else:
        weights = call.in_proj_weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return map(F.linear, (call.query, call.key, call.value), weights, biases)


def _mask(call: SimpleNamespace) -> Any:
    """Return what is added to the scores [N, H, L, S], or None."""
    names = ("attn_mask", "key_padding_mask")
    masks = [
        F._canonical_mask(getattr(call, name), name, None, "", call.query.dtype, False)
        for name in names
    ]
    if masks[1] is not None:
        masks[1] = masks[1].unsqueeze(1).unsqueeze(1)
    found = [mask for mask in masks if mask is not None]
    return found[0] + found[1] if len(found) == 2 else found[0] if found else None
