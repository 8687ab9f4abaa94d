/* Every loop for one instruction set: moments.c includes this file once for each, with SUFFIX, TARGET, VECTOR_BYTES. */

#define GLUE_(x, type, suffix) x##_##type##_##suffix
#define GLUE(x, type, suffix) GLUE_(x, type, suffix)
#define PLAIN_(x, suffix) x##_##suffix
#define PLAIN(x, suffix) PLAIN_(x, suffix)

#define T float
#define U uint32_t
#define NAME(x) GLUE(x, f32, SUFFIX)
#define MANTISSA 23
#define BIAS 127
#include "moments_lanes.h"
#include "units.h"
#undef T
#undef U
#undef NAME
#undef MANTISSA
#undef BIAS

#define T double
#define U uint64_t
#define NAME(x) GLUE(x, f64, SUFFIX)
#define MANTISSA 52
#define BIAS 1023
#include "moments_lanes.h"
#include "units.h"
#undef T
#undef U
#undef NAME
#undef MANTISSA
#undef BIAS

#define U uint16_t
#define NAME(x) GLUE(x, 16, SUFFIX)
#include "units.h"
#undef U
#undef NAME

/* bfloat16 is the upper half of a float32. */
TARGET static void PLAIN(widen_bf16, SUFFIX)(const uint16_t *x, int n, uint32_t *out)
{
    for (int i = 0; i < n; i++)
        out[i] = (uint32_t)x[i] << 16;
}

/* float16 by integers: the exponent moves by 112, twice where it is all ones; a subnormal number is read as a normal
 * one with the smallest exponent, whose leading 1 is then subtracted. */
TARGET static void PLAIN(widen_f16, SUFFIX)(const uint16_t *x, int n, float *out)
{
    const uint32_t shifted_ones = 0x7c00u << 13, rebias = 112u << 23;
    for (int i = 0; i < n; i++) {
        uint32_t h = x[i], o = (h & 0x7fffu) << 13, exponent = o & shifted_ones, subnormal;
        float f;
        union { uint32_t u; float f; } a, b;
        o += rebias + (exponent == shifted_ones ? rebias : 0);
        subnormal = exponent == 0 ? 1u << 23 : 0;
        a.u = o + subnormal;
        b.u = exponent == 0 ? 113u << 23 : 0;
        f = a.f - b.f;
        a.f = f;
        a.u |= (h & 0x8000u) << 16;
        out[i] = a.f;
    }
}

TARGET static void PLAIN(halves, SUFFIX)(const uint16_t *x, int64_t n, int brain, Running *r, Norm *norm)
{
    float wide[CHUNK];
    for (int64_t i = 0; i < n; i += CHUNK) {
        int m = n - i < CHUNK ? (int)(n - i) : CHUNK;
        if (brain)
            PLAIN(widen_bf16, SUFFIX)(x + i, m, (uint32_t *)wide);
        else
            PLAIN(widen_f16, SUFFIX)(x + i, m, wide);
        if (r)
            GLUE(chunk, f32, SUFFIX)(wide, m, r);
        else
            GLUE(norm_chunk, f32, SUFFIX)(wide, m, norm);
    }
}

TARGET static void PLAIN(moments, SUFFIX)(const Entry *entry, Running *r)
{
    switch (entry->dtype) {
    case FLOAT32: GLUE(tensor, f32, SUFFIX)(entry->data, entry->count, r); break;
    case FLOAT64: GLUE(tensor, f64, SUFFIX)(entry->data, entry->count, r); break;
    default: PLAIN(halves, SUFFIX)(entry->data, entry->count, entry->dtype == BFLOAT16, r, NULL);
    }
}

TARGET static void PLAIN(norms, SUFFIX)(const Entry *entry, Norm *norm)
{
    switch (entry->dtype) {
    case FLOAT32: GLUE(norm, f32, SUFFIX)(entry->data, entry->count, norm); break;
    case FLOAT64: GLUE(norm, f64, SUFFIX)(entry->data, entry->count, norm); break;
    default: PLAIN(halves, SUFFIX)(entry->data, entry->count, entry->dtype == BFLOAT16, NULL, norm);
    }
}

/* m elements from the given one, in the type of sums: as they lie, or widened into a buffer. */
TARGET static const float *PLAIN(as_floats, SUFFIX)(const void *x, int64_t offset, int m, int64_t dtype, float *buffer)
{
    if (dtype == FLOAT32)
        return (const float *)x + offset;
    if (dtype == BFLOAT16)
        PLAIN(widen_bf16, SUFFIX)((const uint16_t *)x + offset, m, (uint32_t *)buffer);
    else
        PLAIN(widen_f16, SUFFIX)((const uint16_t *)x + offset, m, buffer);
    return buffer;
}

/* Sums over features f and samples b of (x_bf - mean_f)^2 and of mean_f^2, for x of shape (samples, features), in one
 * pass. The pivot of a feature is its first sample: the squares that cancel are at most `samples` times what is left. */
TARGET static void PLAIN(between, SUFFIX)(const void *x, int64_t samples, int64_t features, int64_t dtype,
                                          double out[2])
{
    out[0] = out[1] = 0.0;
    for (int64_t first = 0; first < features; first += TILE) {
        int m = features - first < TILE ? (int)(features - first) : TILE;
        double pivot[TILE], sum[TILE], squares[TILE];
        float buffer[TILE];
        memset(pivot, 0, sizeof pivot);
        for (int64_t b = 0; b < samples; b++) {
            int64_t offset = b * features + first;
            if (b < 2) {
                memset(sum, 0, sizeof sum);
                memset(squares, 0, sizeof squares);
            }
            if (dtype == FLOAT64)
                GLUE(add_sample, f64, SUFFIX)((const double *)x + offset, m, pivot, sum, squares);
            else
                GLUE(add_sample, f32, SUFFIX)(PLAIN(as_floats, SUFFIX)(x, offset, m, dtype, buffer), m, pivot, sum,
                                              squares);
            if (b == 0)
                memcpy(pivot, sum, sizeof pivot); /* the first sample's distance from 0 is the sample */
        }
        for (int f = 0; f < m; f++) {
            double shift = sum[f] / (double)samples, rest = squares[f] - sum[f] * shift;
            out[0] += rest > 0.0 ? rest : 0.0;
            out[1] += (pivot[f] + shift) * (pivot[f] + shift) * (double)samples;
        }
    }
}

TARGET static void PLAIN(alive, SUFFIX)(const Alive *a)
{
    switch (a->width) {
    case 2: GLUE(alive, 16, SUFFIX)(a); break;
    case 4: GLUE(alive, f32, SUFFIX)(a); break;
    default: GLUE(alive, f64, SUFFIX)(a);
    }
}

#undef GLUE_
#undef GLUE
#undef PLAIN_
#undef PLAIN
