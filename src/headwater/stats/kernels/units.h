/* Which units were alive, for elements of one width: moments_targets.h includes this file once per width, with U the
 * unsigned integer of that width and NAME(x) a suffix for it. The bits of |x| order as |x| does. */

/* x has shape (samples, units, space); mask[u] becomes 1 where threshold < |x| <= infinity somewhere. */
TARGET static void NAME(alive)(const Alive *a)
{
    const U *x = a->data;
    const U magnitude = (U)~((U)1 << (8 * sizeof(U) - 1)), threshold = (U)a->threshold, infinity = (U)a->infinity;
    uint8_t *restrict mask = a->mask;
    if (a->space == 1) {
        for (int64_t first = 0; first < a->units; first += TILE) {
            int m = a->units - first < TILE ? (int)(a->units - first) : TILE;
            U alive[TILE];
            memset(alive, 0, sizeof alive);
            for (int64_t b = 0; b < a->samples; b++) {
                const U *row = x + b * a->units + first;
                for (int u = 0; u < m; u++) {
                    U bits = row[u] & magnitude;
                    alive[u] |= (U)((bits > threshold) & (bits <= infinity));
                }
                /* Most units are alive in the first few samples, and then there is nothing left to find. */
                if (b % 8 == 7) {
                    U all = 1;
                    for (int u = 0; u < m; u++)
                        all &= alive[u];
                    if (all)
                        break;
                }
            }
            for (int u = 0; u < m; u++)
                mask[first + u] |= (uint8_t)alive[u];
        }
        return;
    }
    for (int64_t u = 0; u < a->units; u++) {
        const U *row = x + u * a->space;
        for (int64_t b = 0; b < a->samples && !mask[u]; b++, row += a->units * a->space) {
            for (int64_t s = 0; s < a->space && !mask[u]; s += 256) {
                int64_t end = a->space - s < 256 ? a->space : s + 256;
                U found = 0;
                for (int64_t i = s; i < end; i++) {
                    U bits = row[i] & magnitude;
                    found |= (U)((bits > threshold) & (bits <= infinity));
                }
                mask[u] |= found != 0;
            }
        }
    }
}
