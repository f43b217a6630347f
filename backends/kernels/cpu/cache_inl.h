// The KV cache: one token into it, sixteen values out of it, in each format of ops.h. Included by ops_inl.h.
#pragma once

namespace {

constexpr int kMostWidth = 1024;

// Halves a group of sixteen tokens keeps besides its codes.
template <int Bits>
constexpr int kGroupScales = Bits == 4 ? 32 : 16;

// --- turning ----------------------------------------------------------------------------------------------------------

// x[head_width] = x[head_dim] zero padded, each whole run of 32 times the orthogonal Hadamard matrix. Turned alike, a
// query and a key have the product they had, but what one channel of the key stood out by is spread over 32: with 4 bits
// a group would else have codes for that channel alone.
void turn(float* x, int head_dim, int head_width) {
    memset(x + head_dim, 0, size_t(head_width - head_dim) * 4);
    for (int first = 0; first + 32 <= head_width; first += 32) {
        float* run = x + first;
        for (int apart = 1; apart < 32; apart *= 2)
            for (int i = 0; i < 32; i += 2 * apart)
                for (int j = i; j < i + apart; j++) {
                    const float a = run[j], b = run[j + apart];
                    run[j] = a + b, run[j + apart] = a - b;
                }
        for (int i = 0; i < 32; i++) run[i] *= 0.17677669529663689f;
    }
}

// --- writing ----------------------------------------------------------------------------------------------------------

// What a half can hold, zero padded to `width`; in this order NaN stays NaN.
inline void pad_to_halves(const float* x, int head_dim, int width, float* padded) {
    memset(padded, 0, size_t(width) * 4);
    memcpy(padded, x, size_t(head_dim) * 4);
    for (int d = 0; d < width; d += 16) store(padded + d, max(all(-65504.0f), min(all(65504.0f), load(padded + d))));
}

// Returns what the stored half stands for: codes are counted in the step that will be read, not in the one wanted.
inline float put_half(float x, uint16_t* to) {
    uint16_t halves[16];
    float lanes[16];
    store_half(halves, all(x));
    store(lanes, load_half(halves));
    *to = halves[0];
    return lanes[0];
}

// Codes of one token's values over one group, `count` a multiple of 16. A NaN among them makes the scale NaN, and with it
// every value that will be read.
template <int Bits>
inline void round_group(const float* x, int count, uint16_t* scale, int8_t* codes) {
    F16 most = all(-65504.0f), least = all(65504.0f), poison = zero();
    for (int d = 0; d < count; d += 16) {
        most = max(most, load(x + d)), least = min(least, load(x + d));
        poison = fma(load(x + d), zero(), poison);
    }
    const float wrong = sum_lanes(poison), highest = max_lanes(most), lowest = -max_lanes(sub(zero(), least));
    const float reach = highest > -lowest ? highest : -lowest;
    const float minimum = Bits == 4 ? put_half(lowest + wrong, scale + 16) : 0;
    const float step = put_half((Bits == 4 ? (highest - lowest) / 15 : reach / 127) + wrong, scale);
    const F16 inverse = all(step > 0 ? 1 / step : 0), offset = all(step > 0 ? minimum : 0);
    const F16 low = all(Bits == 4 ? 0 : -127), high = all(Bits == 4 ? 15 : 127);
    // The value on the left, so that NaN becomes a bound: what a NaN is as an integer, nobody says.
    for (int d = 0; d < count; d += 16)
        store_int8(codes + d, min(max(mul(sub(load(x + d), offset), inverse), low), high));
}

// One token's K (across tokens) or V (along the token) into its slot of a plane.
template <int Bits>
inline void store_plane(const float* x, int head_dim, int head_width, uint8_t* plane, int slot, bool is_key) {
    const int groups = kv_groups(Bits, head_width), width = Bits == 4 ? 32 * groups : head_width;
    float padded[kMostWidth];
    int8_t codes[kMostWidth];
    pad_to_halves(x, head_dim, width, padded);
    uint16_t* scales = reinterpret_cast<uint16_t*>(plane) + slot;
    if (Bits == 4 && is_key) turn(padded, head_dim, head_width);
    for (int g = 0; g < groups; g++) {
        const int count = width - 32 * g < 32 ? width - 32 * g : 32;
        round_group<Bits>(padded + 32 * g, count, scales + kGroupScales<Bits> * g, codes + 32 * g);
    }
    uint8_t* to = plane + scale_bytes(Bits, head_width);
    if (Bits == 8 && is_key)
        for (int d = 0; d < width; d++) to[16 * d + slot] = uint8_t(codes[d]);
    if (Bits == 8 && !is_key) memcpy(to + slot * width, codes, size_t(width));
    if (Bits == 4 && is_key)
        for (int d = 0; d < width; d += 2) to[8 * d + slot] = uint8_t(codes[d] | codes[d + 1] << 4);
    if (Bits == 4 && !is_key)
        for (int d = 0; d < width / 2; d++) {
            const int low = d / 16 * 32 + d % 16;
            to[slot * (width / 2) + d] = uint8_t(codes[low] | codes[low + 16] << 4);
        }
}

template <>
inline void store_plane<16>(const float* x, int head_dim, int head_width, uint8_t* plane, int slot, bool is_key) {
    float padded[kMostWidth];
    uint16_t halves[16];
    pad_to_halves(x, head_dim, head_width, padded);
    uint16_t* to = reinterpret_cast<uint16_t*>(plane);
    for (int d = 0; d < head_width; d += 16) {
        store_half(halves, load(padded + d));
        if (!is_key) memcpy(to + slot * head_width + d, halves, 32);
        for (int i = 0; is_key && i < 16; i++) to[(d + i) * 16 + slot] = halves[i];
    }
}

// One token's K and V into its slot of a sub-block. K is stored across tokens so that a register of scores is sixteen
// tokens and needs no sum over lanes.
template <int Bits>
void store_kv(const float* k, const float* v, int head_dim, int head_width, uint8_t* subblock, int slot) {
    store_plane<Bits>(k, head_dim, head_width, subblock, slot, true);
    store_plane<Bits>(v, head_dim, head_width, subblock + plane_bytes(Bits, head_width), slot, false);
}

// --- reading ----------------------------------------------------------------------------------------------------------

// K of sixteen tokens, one dimension at a time.
template <int Bits>
struct Plane {
    const uint8_t *scales = nullptr, *codes = nullptr;
    F16 scale, minimum;

    Plane() = default;
    Plane(const uint8_t* plane, int head_width) : scales(plane), codes(plane + scale_bytes(Bits, head_width)) {}

    INLINE void open_group(int group) {
        const uint16_t* halves = reinterpret_cast<const uint16_t*>(scales) + kGroupScales<Bits> * group;
        if constexpr (Bits < 16) scale = load_half(halves);
        if constexpr (Bits == 4) minimum = load_half(halves + 16);
    }
    INLINE F16 across_tokens(int d) const {
        if constexpr (Bits == 16) return load_half(reinterpret_cast<const uint16_t*>(codes) + 16 * d);
        if constexpr (Bits == 8) return mul(load_int8(codes + 16 * d), scale);
        if constexpr (Bits == 4) return fma(load_nibbles(codes + d / 2 * 16, d % 2 * 4), scale, minimum);
    }
};

// V of sixteen tokens, `Slices` x 16 dimensions of one token at a time.
template <int Bits, int Slices>
struct Values {
    const uint8_t* codes;
    int width, slice;
    float scales[Slices][16], minimums[Slices][16];

    INLINE Values(const uint8_t* plane, int head_width, int first)
        : codes(plane + scale_bytes(Bits, head_width)), width(head_width), slice(first) {
        if (Bits == 4) width = 32 * kv_groups(Bits, head_width);
        for (int s = 0; Bits < 16 && s < Slices; s++) {
            const uint16_t* halves = reinterpret_cast<const uint16_t*>(plane) + (slice + s) / 2 * kGroupScales<Bits>;
            store(scales[s], load_half(halves));
            if (Bits == 4) store(minimums[s], load_half(halves + 16));
        }
    }
    INLINE F16 of_token(int t, int s) const {
        const int at = slice + s;
        if constexpr (Bits == 16) return load_half(reinterpret_cast<const uint16_t*>(codes) + t * width + 16 * at);
        if constexpr (Bits == 8) return mul(load_int8(codes + t * width + 16 * at), all(scales[s][t]));
        if constexpr (Bits == 4)
            return fma(load_nibbles(codes + t * (width / 2) + at / 2 * 16, at % 2 * 4), all(scales[s][t]),
                       all(minimums[s][t]));
    }
};

}  // namespace
