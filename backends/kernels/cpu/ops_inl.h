// Every kernel, written once over the sixteen lanes of simd_*.h; included by one source file per instruction set.
//
// A row's arithmetic never depends on its company: the rows of a tile share loads, not sums, so an answer is bitwise the
// same alone, in any batch, and on any number of threads. Multiply-adds are explicit (-ffp-contract=off).
#pragma once
#include <cfloat>
#include <cstring>

#include "ops.h"

// Left to itself GCC keeps these apart and passes a tile's registers through memory.
#define INLINE inline __attribute__((always_inline))

namespace {

using namespace tidegate;

// Calls use(Rows, first) for tiles as even as can be: thirteen rows are 7 + 6, not 12 + 1.
template <int Most, class Use>
inline void in_tiles(int count, Use use) {
    const int tiles = (count + Most - 1) / Most;
    for (int t = 0, first = 0; t < tiles; t++) {
        const int size = (count - first + tiles - t - 1) / (tiles - t);
        use(size, first);
        first += size;
    }
}

// Runs body<Rows> for the least compiled size >= count; surplus rows repeat the last one and are not written.
template <template <int> class Body, class... Arguments>
inline void sized(int count, Arguments&&... arguments) {
    if (count == 1) return Body<1>::run(count, arguments...);
    if (count == 2) return Body<2>::run(count, arguments...);
    if (count == 3) return Body<3>::run(count, arguments...);
    if (count == 4) return Body<4>::run(count, arguments...);
    if constexpr (kTileRows > 4) {
        if (count <= 6) return Body<6>::run(count, arguments...);
        if (count <= 8) return Body<8>::run(count, arguments...);
        if (count <= 10) return Body<10>::run(count, arguments...);
        return Body<12>::run(count, arguments...);
    }
}

template <int Rows>
inline void repeat_last(int count, int first, int (&rows)[Rows]) {
    for (int m = 0; m < Rows; m++) rows[m] = first + (m < count ? m : count - 1);
}

// exp(x) for x <= 0 (and to 88): 2^n * 2^f by a polynomial of degree 6 on |f| <= 1/2, within 2 ulp.
inline F16 exponential(F16 x) {
    x = min(all(88.0f), max(all(-87.0f), x));  // in this order NaN stays NaN
    const F16 n = nearest(mul(x, all(1.44269504088896341f)));
    F16 f = fma(n, all(-0.693359375f), x);
    f = fma(n, all(2.12194440e-4f), f);
    F16 y = all(1.9875691500e-4f);
    y = fma(y, f, all(1.3981999507e-3f));
    y = fma(y, f, all(8.3334519073e-3f));
    y = fma(y, f, all(4.1665795894e-2f));
    y = fma(y, f, all(1.6666665459e-1f));
    y = fma(y, f, all(5.0000001201e-1f));
    y = add(fma(mul(f, f), y, f), all(1));
    return times_power_of_two(y, n);
}

inline float exponential(float x) {
    float lanes[16];
    store(lanes, exponential(all(x)));
    return lanes[0];
}

}  // namespace

#include "cache_inl.h"
#include "attend_inl.h"
#include "matmul_inl.h"
#include "quantise_inl.h"
#include "kvcodec_inl.h"

namespace {

// out = silu(gate x) * (up x)
void swiglu(const TgLinear& gate, const TgLinear& up, const Activations& x, int first, int last, float* out,
            int64_t stride) {
    constexpr int kRows = 4 * kTileRows;
    float ups[kRows * kLanes];
    for (int row = 0; row < x.rows; row += kRows) {
        const Activations part = x.part(row, x.rows - row < kRows ? x.rows - row : kRows);
        float* to = out + row * stride;
        for (int panel = first; panel < last; panel++) {
            matmul(gate, part, panel, panel + 1, to, stride, false);
            matmul(up, part, panel, panel + 1, ups - panel * kLanes, kLanes, false);
            for (int m = 0; m < part.rows; m++) {
                const F16 g = load(to + m * stride + panel * kLanes);
                const F16 silu = div(g, add(all(1), exponential(sub(zero(), g))));
                store(to + m * stride + panel * kLanes, mul(silu, load(ups + m * kLanes)));
            }
        }
    }
}

// --- greedy choice ----------------------------------------------------------------------------------------------------

// The first of the highest; -1 when a value is not finite.
int argmax(const float* x, int count) {
    F16 most = all(-FLT_MAX), poison = zero();
    int k = 0;
    for (; k + 16 <= count; k += 16) {
        most = max(load(x + k), most);
        poison = fma(load(x + k), zero(), poison);
    }
    float highest = max_lanes(most), rest = sum_lanes(poison);
    for (; k < count; k++) {
        highest = x[k] > highest ? x[k] : highest;
        rest += x[k] * 0;
    }
    if (rest != 0) return -1;
    for (k = 0; k < count; k++)
        if (x[k] == highest) return k;
    return -1;
}

}  // namespace

#define TIDEGATE_OPS(isa)                                                                                              \
    const tidegate::Ops tidegate::ops_##isa = {#isa,   quantise, rms_quantise, matmul, swiglu,                         \
                                               rotate, {store_kv<16>, store_kv<8>, store_kv<4>}, {attend<16>, attend<8>, attend<4>},     \
                                               turn,   merge,    argmax, decode_run, encode_run, centre, read_run, write_run};
