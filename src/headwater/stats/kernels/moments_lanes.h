/* Loops over one chunk, for one element type and one instruction set. moments_targets.h includes this file once per
 * type, with
 *
 *   T, U          float and uint32_t, or double and uint64_t
 *   NAME(x)       x with a suffix for the type and the instruction set
 *   TARGET        the function attribute of the instruction set, or nothing
 *   VECTOR_BYTES  bytes of a vector register that the compiler should think in
 *   MANTISSA      bits of the stored mantissa
 *   BIAS          bias of the exponent
 *
 * Vectors are those of GCC and clang ("vector extensions"): on a processor without such registers the compiler splits
 * them, so that the results differ between instruction sets only in the order of the sums.
 */

#define LANES (VECTOR_BYTES / (int)sizeof(T))
#define STRIDE (2 * LANES) /* two accumulators per sum hide the latency of an addition */

typedef T NAME(vec) __attribute__((vector_size(VECTOR_BYTES)));
typedef U NAME(bits) __attribute__((vector_size(VECTOR_BYTES)));
typedef T NAME(vec_in_memory) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
typedef U NAME(word) __attribute__((may_alias));

#define ABS_BITS ((U)~((U)1 << (8 * sizeof(T) - 1)))
#define INF_BITS ((U)(((U)(2 * BIAS + 1)) << MANTISSA))

/* The bits of |x| order as |x| does, and NaN comes above infinity: one integer pass finds the largest, the smallest,
 * and whether anything is zero or not finite. */
TARGET static void NAME(scan)(const T *x, int n, U *largest, U *smallest)
{
    const NAME(word) *word = (const NAME(word) *)x;
    U high = 0, low = ABS_BITS;
    for (int i = 0; i < n; i++) {
        U b = word[i] & ABS_BITS;
        high = b > high ? b : high;
        low = b < low ? b : low;
    }
    *largest = high;
    *smallest = low;
}

/* The number of zeros, and the smallest magnitude that is none: 0 - 1 wraps around to the largest integer. */
TARGET static int NAME(zeros)(const T *x, int n, U *smallest)
{
    const NAME(word) *word = (const NAME(word) *)x;
    U low = (U)-1, count = 0;
    for (int i = 0; i < n; i++) {
        U b = (word[i] & ABS_BITS) - 1;
        low = b < low ? b : low;
        count += b == (U)-1;
    }
    *smallest = low + 1; /* 0 again where all are zero */
    return (int)count;
}

/* Sums of y = scale * x over one chunk: y, |y|, y^2, y^4. Lanes run in T over SUBCHUNK elements and in double beyond. */
TARGET static void NAME(sums)(const T *x, int n, T scale, double out[4])
{
    double total[4][STRIDE];
    int i = 0;
    memset(total, 0, sizeof total);
    while (n - i >= STRIDE) {
        NAME(vec) sum0 = {0}, sum1 = {0}, abs0 = {0}, abs1 = {0}, sq0 = {0}, sq1 = {0}, fo0 = {0}, fo1 = {0};
        int end = n - i < SUBCHUNK ? i + (n - i) / STRIDE * STRIDE : i + SUBCHUNK;
        for (; i < end; i += STRIDE) {
            NAME(vec) y0 = *(const NAME(vec_in_memory) *)(x + i) * scale;
            NAME(vec) y1 = *(const NAME(vec_in_memory) *)(x + i + LANES) * scale;
            NAME(vec) s0 = y0 * y0, s1 = y1 * y1;
            sum0 += y0;
            sum1 += y1;
            abs0 += (NAME(vec))((NAME(bits))y0 & ABS_BITS);
            abs1 += (NAME(vec))((NAME(bits))y1 & ABS_BITS);
            sq0 += s0;
            sq1 += s1;
            fo0 += s0 * s0;
            fo1 += s1 * s1;
        }
        for (int j = 0; j < LANES; j++) {
            total[0][j] += sum0[j];
            total[0][j + LANES] += sum1[j];
            total[1][j] += abs0[j];
            total[1][j + LANES] += abs1[j];
            total[2][j] += sq0[j];
            total[2][j + LANES] += sq1[j];
            total[3][j] += fo0[j];
            total[3][j + LANES] += fo1[j];
        }
    }
    for (; i < n; i++) {
        double y = (double)(x[i] * scale), square = y * y;
        total[0][0] += y;
        total[1][0] += y < 0 ? -y : y;
        total[2][0] += square;
        total[3][0] += square * square;
    }
    for (int q = 0; q < 4; q++) {
        double s = 0.0;
        for (int j = 0; j < STRIDE; j++)
            s += total[q][j];
        out[q] = s;
    }
}

/* Sums of d = scale * x - mean and of d^2: the corrected two-pass formula shows the rounding of the mean in the first. */
TARGET static void NAME(deviations)(const T *x, int n, T scale, T mean, double out[2])
{
    double total[2][STRIDE];
    int i = 0;
    memset(total, 0, sizeof total);
    while (n - i >= STRIDE) {
        NAME(vec) sum0 = {0}, sum1 = {0}, sq0 = {0}, sq1 = {0};
        int end = n - i < SUBCHUNK ? i + (n - i) / STRIDE * STRIDE : i + SUBCHUNK;
        for (; i < end; i += STRIDE) {
            NAME(vec) d0 = *(const NAME(vec_in_memory) *)(x + i) * scale - mean;
            NAME(vec) d1 = *(const NAME(vec_in_memory) *)(x + i + LANES) * scale - mean;
            sum0 += d0;
            sum1 += d1;
            sq0 += d0 * d0;
            sq1 += d1 * d1;
        }
        for (int j = 0; j < LANES; j++) {
            total[0][j] += sum0[j];
            total[0][j + LANES] += sum1[j];
            total[1][j] += sq0[j];
            total[1][j + LANES] += sq1[j];
        }
    }
    for (; i < n; i++) {
        double d = (double)(x[i] * scale - mean);
        total[0][0] += d;
        total[1][0] += d * d;
    }
    out[0] = out[1] = 0.0;
    for (int j = 0; j < STRIDE; j++) {
        out[0] += total[0][j];
        out[1] += total[1][j];
    }
}

/* Sum of x^2 alone, as it is: out of range it becomes infinite, NaN or tiny, and the caller takes the longer way. */
TARGET static double NAME(squares)(const T *x, int n)
{
    double total[STRIDE], s = 0.0;
    int i = 0;
    memset(total, 0, sizeof total);
    while (n - i >= 2 * STRIDE) {
        NAME(vec) a = {0}, b = {0}, c = {0}, d = {0};
        int end = n - i < SUBCHUNK ? i + (n - i) / (2 * STRIDE) * (2 * STRIDE) : i + SUBCHUNK;
        for (; i < end; i += 2 * STRIDE) {
            NAME(vec) y0 = *(const NAME(vec_in_memory) *)(x + i);
            NAME(vec) y1 = *(const NAME(vec_in_memory) *)(x + i + LANES);
            NAME(vec) y2 = *(const NAME(vec_in_memory) *)(x + i + 2 * LANES);
            NAME(vec) y3 = *(const NAME(vec_in_memory) *)(x + i + 3 * LANES);
            a += y0 * y0;
            b += y1 * y1;
            c += y2 * y2;
            d += y3 * y3;
        }
        a += c;
        b += d;
        for (int j = 0; j < LANES; j++) {
            total[j] += a[j];
            total[j + LANES] += b[j];
        }
    }
    for (; i < n; i++)
        s += (double)x[i] * (double)x[i];
    for (int j = 0; j < STRIDE; j++)
        s += total[j];
    return s;
}

/* The finite elements, side by side. */
TARGET static int NAME(finite)(const T *x, int n, T *out, Running *r)
{
    const NAME(word) *word = (const NAME(word) *)x;
    int kept = 0, nan = 0, inf = 0;
    for (int i = 0; i < n; i++) {
        U b = word[i] & ABS_BITS;
        out[kept] = x[i];
        kept += b < INF_BITS;
        nan += b > INF_BITS;
        inf += b == INF_BITS;
    }
    r->nan += nan;
    r->inf += inf;
    return kept;
}

/* All statistics of one chunk of at most CHUNK elements, merged into those of the chunks before it. */
TARGET static void NAME(chunk)(const T *x, int n, Running *r)
{
    T kept[CHUNK], scale, mean, extreme;
    U largest, smallest;
    double sum[4], deviation[2], squared_mean;
    int e;
    NAME(scan)(x, n, &largest, &smallest);
    r->count += n;
    if (largest >= INF_BITS) {
        n = NAME(finite)(x, n, kept, r);
        x = kept;
        if (n == 0)
            return;
        NAME(scan)(x, n, &largest, &smallest);
    }
    if (smallest == 0)
        r->zero += NAME(zeros)(x, n, &smallest);
    if (smallest > 0) {
        memcpy(&extreme, &smallest, sizeof(T));
        if (r->min == 0.0 || (double)extreme < r->min)
            r->min = (double)extreme;
    }
    /* A power of two near the largest magnitude brings it to [1, 2), near the ends of the range a little off: then
     * fourth powers of the small ones are lost only where they do not matter beside the largest. */
    e = (int)(largest >> MANTISSA) - BIAS;
    e = largest == 0 ? 0 : e < 1 - BIAS ? 1 - BIAS : e > BIAS - 1 ? BIAS - 1 : e;
    if (sizeof(T) == 8 && e > -COMFORTABLE && e < COMFORTABLE)
        e = 0;
    smallest = (U)(BIAS - e) << MANTISSA;
    memcpy(&scale, &smallest, sizeof(T));
    memcpy(&extreme, &largest, sizeof(T));
    NAME(sums)(x, n, scale, sum);
    squared_mean = sum[0] * sum[0] / n;
    if (squared_mean > CANCELLATION_SHARE * sum[2]) {
        mean = (T)(sum[0] / n);
        NAME(deviations)(x, n, scale, mean, deviation);
        sum[0] = (double)mean * n + deviation[0];
        deviation[1] -= deviation[0] * deviation[0] / n;
        if (deviation[1] < 0.0)
            deviation[1] = 0.0;
    } else {
        deviation[1] = sum[2] - squared_mean;
    }
    merge(r, n, e, sum[0], sum[1], deviation[1], sum[3], (double)(extreme * scale), sizeof(T) == 4);
}

TARGET static void NAME(tensor)(const T *x, int64_t n, Running *r)
{
    for (int64_t i = 0; i < n; i += CHUNK)
        NAME(chunk)(x + i, n - i < CHUNK ? (int)(n - i) : CHUNK, r);
}

/* The sum of squares of one chunk, and its non-finite elements. */
TARGET static void NAME(norm_chunk)(const T *x, int n, Norm *norm)
{
    double s = NAME(squares)(x, n);
    Running r;
    if (s >= (sizeof(T) == 4 ? 0x1p-100 : 0x1p-900) && s <= DBL_MAX) {
        add_squares(norm, s, 0);
        return;
    }
    /* Tiny, zero, too large, or not finite. */
    memset(&r, 0, sizeof r);
    NAME(chunk)(x, n, &r);
    norm->nan += r.nan;
    norm->inf += r.inf;
    if (r.finite > 0.0)
        add_squares(norm, r.deviations + r.sum * r.sum / r.finite, r.scale);
}

TARGET static void NAME(norm)(const T *x, int64_t n, Norm *norm)
{
    for (int64_t i = 0; i < n; i += CHUNK)
        NAME(norm_chunk)(x + i, n - i < CHUNK ? (int)(n - i) : CHUNK, norm);
}

/* Add one sample to Sum(x - pivot) and Sum((x - pivot)^2) of each of m features. */
TARGET static void NAME(add_sample)(const T *restrict x, int m, const double *restrict pivot, double *restrict sum,
                                    double *restrict squares)
{
    for (int f = 0; f < m; f++) {
        double d = (double)x[f] - pivot[f];
        sum[f] += d;
        squares[f] += d * d;
    }
}

#undef LANES
#undef STRIDE
#undef ABS_BITS
#undef INF_BITS
