// The products of the KV codec: sixteen tokens' channels into symbols and back. Included by ops_inl.h.
//
// Tokens are lanes. Decoding multiplies bytes by bytes in whole numbers (the Dot of an 8-bit matrix, the symbols in its
// place); encoding has the matrix that undoes exactly this one, in fp32.
#pragma once

namespace {

// One row's sum and those of the rows after it. A list, since GCC keeps an array of these in memory: 2.5 times the time.
// Rows of a tile beyond the last are read, from what lies behind, and not written.
template <int Rows>
struct Sums {
    Dot<8> row;
    Sums<Rows - 1> rest;
    INLINE void add(U8 w, const int8_t* decode) {
        row.add(w, decode);
        rest.add(w, decode + 4);
    }
    INLINE void write(int count, const TgTransform& t, int c, float* x) const {
        if (count == 0) return;
        const float base = t.mean[c] - t.scales[c] * t.sums[c] * (128 - Dot<8>::bias);
        store(x + 16 * c, fma(all(t.scales[c]), row.value(), all(base)));
        rest.write(count - 1, t, c + 1, x);
    }
};

template <>
struct Sums<0> {
    INLINE void add(U8, const int8_t*) {}
    INLINE void write(int, const TgTransform&, int, float*) const {}
};

template <int Rows>
struct DecodeTile {
    static void run(int count, const TgTransform& t, const uint8_t* symbols, int first, float* x) {
        Sums<Rows> sums;
        const int8_t* decode = t.decode + 4 * first;
        for (int quad = t.kept / 4; quad > 0; quad--, decode += 4 * t.channels, symbols += kChunkTokens * 4)
            sums.add(bytes(symbols), decode);
        sums.write(count, t, first, x);
    }
};

// x [channels][16] = mean + scales * (decode . (symbols - 128)); symbols [kept / 4][256 tokens][4], at the first of sixteen
void decode_run(const TgTransform& t, const uint8_t* symbols, float* x) {
    in_tiles<kTileRows>(t.channels, [&](int count, int first) { sized<DecodeTile>(count, t, symbols, first, x); });
}

template <int Rows>
struct EncodeTile {
    static void run(int count, const TgTransform& t, const float* x, int first, float* coefficients) {
        F16 sums[Rows];
#pragma GCC unroll 12
        for (int m = 0; m < Rows; m++) sums[m] = zero();
        const float* encode = t.encode + first;
        for (int c = 0; c < t.channels; c++, encode += t.kept) {
            const F16 lanes = load(x + 16 * c);
#pragma GCC unroll 12
            for (int m = 0; m < Rows; m++) sums[m] = fma(all(encode[m]), lanes, sums[m]);
        }
#pragma GCC unroll 12
        for (int m = 0; m < Rows; m++)
            if (m < count) store(coefficients + 16 * (first + m), nearest(sums[m]));
    }
};

// coefficients [kept][16] = round(encode . x), x [channels][16] with the mean taken off; symbols [kept / 4][256][4] are
// 128 more, held to +-127. Returns the largest magnitude, so that the caller sees whether any was held.
float encode_run(const TgTransform& t, const float* x, float* coefficients, uint8_t* symbols) {
    in_tiles<kTileRows>(t.kept, [&](int count, int first) { sized<EncodeTile>(count, t, x, first, coefficients); });
    F16 most = zero();
    for (int quad = 0; quad < t.kept / 4; quad++) {
        int8_t codes[4][16];
        for (int i = 0; i < 4; i++) {
            const F16 c = load(coefficients + (4 * quad + i) * 16);
            most = max(most, magnitude(c));
            store_int8(codes[i], max(all(-127), min(all(127), c)));
        }
        uint32_t packed[16];
        for (int s = 0; s < 16; s++)
            packed[s] = (uint32_t(uint8_t(codes[0][s])) | uint32_t(uint8_t(codes[1][s])) << 8 |
                         uint32_t(uint8_t(codes[2][s])) << 16 | uint32_t(uint8_t(codes[3][s])) << 24) ^
                        0x80808080u;
        memcpy(symbols + int64_t(quad) * kChunkTokens * 4, packed, 64);
    }
    return max_lanes(most);
}

// x [channels][16] less its mean; false where any of it is not finite.
bool centre(const float* mean, int channels, float* x) {
    F16 poison = zero();
    for (int c = 0; c < channels; c++) {
        const F16 lanes = sub(load(x + 16 * c), all(mean[c]));
        poison = fma(lanes, zero(), poison);
        store(x + 16 * c, lanes);
    }
    return sum_lanes(poison) == 0;
}

// Sixteen tokens of one head out of the cache of halves: k [head_dim][16] turned back to position 0, v [head_dim][16].
// `cosines` and `sines` are [head_dim / 2][256], at the first of the sixteen.
void read_run(const uint8_t* run, int head_dim, int head_width, const float* cosines, const float* sines, float* k,
              float* v) {
    const uint16_t *keys = reinterpret_cast<const uint16_t*>(run), *values = keys + 16 * head_width;
    const int half = head_dim / 2;
    for (int j = 0; j < half; j++) {
        const F16 a = load_half(keys + 16 * j), b = load_half(keys + 16 * (j + half));
        const F16 c = load(cosines + j * kChunkTokens), s = load(sines + j * kChunkTokens);
        store(k + 16 * j, fma(a, c, mul(b, s)));
        store(k + 16 * (j + half), sub(mul(b, c), mul(a, s)));
    }
    for (int d = 0; d < head_dim; d += 4) {
        uint64_t fours[16];
        for (int slot = 0; slot < 16; slot++) memcpy(fours + slot, values + slot * head_width + d, 8);
        for (int i = 0; i < 4 && d + i < head_dim; i++) {
            uint16_t halves[16];
            for (int slot = 0; slot < 16; slot++) halves[slot] = uint16_t(fours[slot] >> (16 * i));
            store(v + 16 * (d + i), load_half(halves));
        }
    }
}

inline F16 as_half(F16 x) { return max(all(-65504.0f), min(all(65504.0f), x)); }

// The other way: k is turned to its position, and both become halves.
void write_run(const float* k, const float* v, int head_dim, int head_width, const float* cosines, const float* sines,
               uint8_t* run) {
    uint16_t *keys = reinterpret_cast<uint16_t*>(run), *values = keys + 16 * head_width;
    const int half = head_dim / 2;
    for (int j = 0; j < half; j++) {
        const F16 a = load(k + 16 * j), b = load(k + 16 * (j + half));
        const F16 c = load(cosines + j * kChunkTokens), s = load(sines + j * kChunkTokens);
        store_half(keys + 16 * j, as_half(sub(mul(a, c), mul(b, s))));
        store_half(keys + 16 * (j + half), as_half(fma(b, c, mul(a, s))));
    }
    for (int d = 0; d < head_dim; d += 4) {  // four at a time: single halves took a tenth of all decoding
        uint16_t halves[4][16] = {};
        for (int i = 0; i < 4 && d + i < head_dim; i++) store_half(halves[i], as_half(load(v + 16 * (d + i))));
        for (int slot = 0; slot < 16; slot++) {
            const uint64_t four = halves[0][slot] | uint64_t(halves[1][slot]) << 16 | uint64_t(halves[2][slot]) << 32 |
                                  uint64_t(halves[3][slot]) << 48;
            memcpy(values + slot * head_width + d, &four, 8);
        }
    }
}

}  // namespace
