/* Additive statistics of tensors in main memory, each read from memory once.
 *
 * A tensor is read in chunks that stay in the first-level cache. Over a chunk run an integer pass (largest and smallest
 * magnitude, zeros, non-finite elements), a pass of sums of y = x / 2^e with a power of two near the largest magnitude,
 * and, only where the mean square would cancel against the squared mean, a pass of deviations. Chunks are merged in
 * double precision (Chan, Golub, LeVeque 1982). There is no allocation, no global state and no thread in here.
 *
 * Compiled by scripts/build_kernels.py, called by kernels/__init__.py.
 */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Elements of a chunk and of a run of lanes: chosen by us, see benchmarks/statistics_kernels.py. A lane of a float32
 * vector adds at most SUBCHUNK / 16 = 64 numbers before it is added to a double: a relative error below 4e-6, and
 * near 1e-7 where roundings are not all of one sign. */
#define CHUNK 2048
#define SUBCHUNK 1024

/* Features, or units, that are looked at together over all samples: their sums stay in the cache. Chosen by us. */
#define TILE 256

/* Exponents of a float64 chunk between which fourth powers need no scale: the plain path's range. */
#define COMFORTABLE 200

/* Sum(y^2) - (Sum y)^2 / n loses at most two bits while the latter stays below this share of the former. */
#define CANCELLATION_SHARE 0.75

enum { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

typedef struct {
    const void *data;
    int64_t count;
    int64_t dtype;
} Entry;

/* A tensor of shape (samples, units, space) of elements of `width` bytes, and the bits of two of its numbers. */
typedef struct {
    const void *data;
    uint8_t *mask;
    int64_t samples, units, space, width, threshold, infinity;
} Alive;

/* The columns of a row, and the number of finite elements. Sums are those of x / 2^scale. */
typedef struct {
    double count, zero, nan, inf, sum, abs, deviations, fourths, max, min, finite;
    int scale;
} Running;

typedef struct {
    double squares, nan, inf;
    int scale;
} Norm;

static void rescale(Running *r, int scale)
{
    double f = r->max > 0.0 ? ldexp(1.0, r->scale - scale) : 0.0; /* nothing but zeros so far: no scale of its own */
    r->sum *= f;
    r->abs *= f;
    r->max *= f;
    r->deviations *= f * f;
    r->fourths *= f * f * f * f;
    r->scale = scale;
}

/* Add n finite elements y * 2^e. The sums of a float32 tensor are kept without a scale: in a double they have room. */
static void merge(Running *r, int n, int e, double sum, double abs, double deviations, double fourths, double max,
                  int unscaled)
{
    double f, delta, together;
    if (!unscaled && max > 0.0 && (r->max == 0.0 || e > r->scale))
        rescale(r, e);
    f = max > 0.0 ? ldexp(1.0, e - r->scale) : 0.0;
    sum *= f;
    together = r->finite + n;
    if (r->finite > 0.0) {
        delta = sum / n - r->sum / r->finite;
        r->deviations += delta * delta * (r->finite * n / together);
    }
    r->deviations += deviations * f * f;
    r->finite = together;
    r->sum += sum;
    r->abs += abs * f;
    r->fourths += fourths * f * f * f * f;
    r->max = max * f > r->max ? max * f : r->max;
}

/* Add s * 2^(2e). */
static void add_squares(Norm *norm, double s, int e)
{
    if (s == 0.0)
        return;
    if (norm->squares == 0.0 || e > norm->scale) {
        norm->squares = ldexp(norm->squares, 2 * (norm->scale - e));
        norm->scale = e;
    }
    norm->squares += ldexp(s, 2 * (e - norm->scale));
}

#define SUFFIX baseline
#define TARGET
#define VECTOR_BYTES 32
#include "moments_targets.h"
#undef SUFFIX
#undef TARGET
#undef VECTOR_BYTES

#if defined(__x86_64__) && defined(__GNUC__)
#define SEVERAL_TARGETS 1

#define SUFFIX avx2
#define TARGET __attribute__((target("avx2,fma")))
#define VECTOR_BYTES 32
#include "moments_targets.h"
#undef SUFFIX
#undef TARGET
#undef VECTOR_BYTES

#define SUFFIX avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define VECTOR_BYTES 64
#include "moments_targets.h"
#undef SUFFIX
#undef TARGET
#undef VECTOR_BYTES
#endif

/* -------------------------------------------------------------------- what Python calls */

/* The best instruction set of this processor: 0 baseline, 1 AVX2, 2 AVX-512. */
int headwater_best_target(void)
{
#ifdef SEVERAL_TARGETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 1;
#endif
    return 0;
}

/* The digest of the sources it was compiled from. */
const char *headwater_source(void)
{
    return HEADWATER_SOURCE;
}

/* Rows of 11 columns: the fields of records.Statistics in their order. */
void headwater_moments(int64_t k, const Entry *entries, double *table, int target)
{
    for (int64_t i = 0; i < k; i++, table += 11) {
        Running r;
        memset(&r, 0, sizeof r);
        switch (target) {
#ifdef SEVERAL_TARGETS
        case 2: moments_avx512(entries + i, &r); break;
        case 1: moments_avx2(entries + i, &r); break;
#endif
        default: moments_baseline(entries + i, &r);
        }
        const double row[11] = {r.count, r.zero, r.nan, r.inf, r.max > 0.0 ? r.scale : 0.0, r.sum, r.abs, r.deviations,
                                r.fourths, r.max, r.min};
        memcpy(table, row, sizeof row);
    }
}

/* Rows of 3 columns: the norm of the finite elements, NaN elements, infinite elements. */
void headwater_norms(int64_t k, const Entry *entries, double *table, int target)
{
    for (int64_t i = 0; i < k; i++, table += 3) {
        Norm norm;
        memset(&norm, 0, sizeof norm);
        switch (target) {
#ifdef SEVERAL_TARGETS
        case 2: norms_avx512(entries + i, &norm); break;
        case 1: norms_avx2(entries + i, &norm); break;
#endif
        default: norms_baseline(entries + i, &norm);
        }
        table[0] = ldexp(sqrt(norm.squares), norm.scale);
        table[1] = norm.nan;
        table[2] = norm.inf;
    }
}

void headwater_alive(const Alive *a, int target)
{
    switch (target) {
#ifdef SEVERAL_TARGETS
    case 2: alive_avx512(a); break;
    case 1: alive_avx2(a); break;
#endif
    default: alive_baseline(a);
    }
}

/* Sums of (x_bf - mean_f)^2 and of mean_f^2 over an array of shape (samples, features), two samples or more, of finite
 * numbers whose squares are in range. */
void headwater_between(const void *x, int64_t samples, int64_t features, int64_t dtype, double out[2], int target)
{
    switch (target) {
#ifdef SEVERAL_TARGETS
    case 2: between_avx512(x, samples, features, dtype, out); break;
    case 1: between_avx2(x, samples, features, dtype, out); break;
#endif
    default: between_baseline(x, samples, features, dtype, out);
    }
}
