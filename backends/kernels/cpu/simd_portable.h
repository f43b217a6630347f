// Sixteen lanes as an array: plain C++ that any compiler turns into what its machine has (NEON, SSE2, ...).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kTileRows = 4;

struct F16 {
    float x[16];
};
struct U8 {
    uint8_t x[64];
};

#define LANES for (int i = 0; i < 16; i++)
inline F16 all(float v) { F16 r; LANES r.x[i] = v; return r; }
inline F16 zero() { return all(0); }
inline F16 load(const float* p) { F16 r; memcpy(r.x, p, 64); return r; }
inline void store(float* p, const F16& v) { memcpy(p, v.x, 64); }
inline F16 add(F16 a, const F16& b) { LANES a.x[i] += b.x[i]; return a; }
inline F16 sub(F16 a, const F16& b) { LANES a.x[i] -= b.x[i]; return a; }
inline F16 mul(F16 a, const F16& b) { LANES a.x[i] *= b.x[i]; return a; }
inline F16 div(F16 a, const F16& b) { LANES a.x[i] /= b.x[i]; return a; }
inline F16 fma(F16 a, const F16& b, const F16& c) { LANES a.x[i] = a.x[i] * b.x[i] + c.x[i]; return a; }
inline F16 max(F16 a, const F16& b) { LANES a.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i]; return a; }
inline F16 min(F16 a, const F16& b) { LANES a.x[i] = a.x[i] < b.x[i] ? a.x[i] : b.x[i]; return a; }
inline F16 magnitude(F16 a) { LANES a.x[i] = a.x[i] < 0 ? -a.x[i] : a.x[i]; return a; }
inline F16 nearest(F16 a) { LANES a.x[i] = nearbyintf(a.x[i]); return a; }
inline F16 first_lanes(F16 a, int count, float rest) { LANES a.x[i] = i < count ? a.x[i] : rest; return a; }
inline F16 times_power_of_two(F16 a, const F16& n) {
    LANES {
        const uint32_t bits = (uint32_t(int32_t(n.x[i])) + 127) << 23;
        float power;
        memcpy(&power, &bits, 4);
        a.x[i] *= power;
    }
    return a;
}

inline float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    uint32_t bits = sign | (exponent + 112) << 23 | mantissa << 13;
    float value;
    if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
    if (exponent == 0) {
        value = float(mantissa) * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, 4);
    return value;
}
// Round to nearest even by letting the float adder drop the bits; callers keep |v| <= 65504.
inline uint16_t float_to_half(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (rest < 0x38800000) {
        float tiny;
        memcpy(&tiny, &rest, 4);
        tiny += 0.5f;
        memcpy(&bits, &tiny, 4);
        return uint16_t(sign | (bits - 0x3f000000));
    }
    return uint16_t(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
}
inline F16 load_half(const uint16_t* p) { F16 r; LANES r.x[i] = half_to_float(p[i]); return r; }
inline void store_half(uint16_t* p, const F16& v) { LANES p[i] = float_to_half(v.x[i]); }
inline void store_int8(int8_t* p, const F16& v) { LANES p[i] = int8_t(nearbyintf(v.x[i])); }
inline F16 load_int8(const uint8_t* p) { F16 r; LANES r.x[i] = int8_t(p[i]); return r; }
inline F16 load_nibbles(const uint8_t* p, int shift) { F16 r; LANES r.x[i] = float(p[i] >> shift & 15); return r; }
inline float sum_lanes(F16 v) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) v.x[i] += v.x[i + n];
    return v.x[0];
}
inline float max_lanes(const F16& v) { float m = v.x[0]; LANES m = v.x[i] > m ? v.x[i] : m; return m; }

#define BYTES for (int i = 0; i < 64; i++)
inline U8 bytes(const uint8_t* p) { U8 r; memcpy(r.x, p, 64); return r; }
inline U8 low_nibbles(U8 v) { BYTES v.x[i] &= 15; return v; }
inline U8 high_nibbles(U8 v) { BYTES v.x[i] >>= 4; return v; }
template <int Shift>
inline U8 with_bits(U8 codes, const U8& plane, int mask) {
    BYTES codes.x[i] |= uint8_t((Shift >= 0 ? plane.x[i] >> (Shift & 7) : plane.x[i] << (-Shift & 7)) & mask);
    return codes;
}

template <int Bits>
struct Dot {
    static constexpr float bias = 0;
    int32_t sum[16] = {};
    inline void add(const U8& w, const int8_t* a) {
        LANES {
            const uint8_t* q = w.x + 4 * i;
            sum[i] += q[0] * a[0] + q[1] * a[1] + q[2] * a[2] + q[3] * a[3];
        }
    }
    template <int Pair>
    inline void after_pair() {}
    inline F16 value() const { F16 r; LANES r.x[i] = float(sum[i]); return r; }
};
#undef LANES
#undef BYTES

}  // namespace
