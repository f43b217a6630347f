// RoPE, and attention over the KV cache. Included by ops_inl.h.
#pragma once

namespace {

// --- RoPE -------------------------------------------------------------------------------------------------------------

// out = scale * rope(norm(x)), halves rotated against each other as in the HF layout; any head_dim, so scalar tails.
void rotate(const float* x, const float* norm, float eps, const float* cosines, const float* sines, int head_dim,
            float scale, float* out) {
    float squares = 0;
    if (norm)
        for (int d = 0; d < head_dim; d++) squares += x[d] * x[d];
    const float inverse = norm ? 1 / __builtin_sqrtf(squares / float(head_dim) + eps) : 1;
    const int half = head_dim / 2;
    for (int d = 0; d < half; d++) {
        const float a = norm ? x[d] * inverse * norm[d] : x[d];
        const float b = norm ? x[d + half] * inverse * norm[d + half] : x[d + half];
        out[d] = (a * cosines[d] - b * sines[d]) * scale;
        out[d + half] = (b * cosines[d] + a * sines[d]) * scale;
    }
}

// --- attention --------------------------------------------------------------------------------------------------------

template <int Bits>
inline const uint8_t* subblock_of(const Attention& a, int token) {
    const int64_t inside = token % a.block_tokens / 16;
    return a.kv + a.blocks[token / a.block_tokens] * a.block_stride + inside * 2 * plane_bytes(Bits, a.head_width);
}

// scores[row][token] = q[row] . k[token], for `Spans` runs of sixteen tokens at once to keep the multipliers busy
template <int Bits, int Rows, int Spans>
inline void score_spans(const Attention& a, const int (&rows)[Rows], int token, float* scores) {
    Plane<Bits> keys[Spans];
    F16 sums[Spans][Rows];
    for (int s = 0; s < Spans; s++) {
        keys[s] = Plane<Bits>(subblock_of<Bits>(a, token + 16 * s), a.head_width);
        for (int m = 0; m < Rows; m++) sums[s][m] = zero();
    }
    const int width = Bits < 16 ? 32 : a.head_width;
    for (int first = 0; first < a.head_width; first += width) {
        const int last = first + width < a.head_width ? first + width : a.head_width;
        for (int s = 0; s < Spans; s++) keys[s].open_group(first / 32);
        for (int d = first; d < last; d++)
#pragma GCC unroll 4
            for (int s = 0; s < Spans; s++) {
                const F16 key = keys[s].across_tokens(d);
#pragma GCC unroll 12
                for (int m = 0; m < Rows; m++) sums[s][m] = fma(all(a.q[rows[m] * a.head_width + d]), key, sums[s][m]);
            }
    }
    for (int s = 0; s < Spans; s++)
        for (int m = 0; m < Rows; m++) store(scores + m * kAttendTokens + token % kAttendTokens + 16 * s, sums[s][m]);
}

// scores -> exp(scores - highest) in place; tokens a row may not see weigh nothing
inline Softmax soften(float* scores, int visible, int count) {
    F16 most = all(-FLT_MAX), weights = zero();
    if (visible <= 0) {
        memset(scores, 0, size_t(count) * 4);
        return kNothing;
    }
    for (int t = 0; t < count; t += 16) most = max(most, first_lanes(load(scores + t), visible - t, -FLT_MAX));
    const float highest = max_lanes(most);
    for (int t = 0; t < count; t += 16) {
        const F16 weight = first_lanes(exponential(sub(load(scores + t), all(highest))), visible - t, 0);
        store(scores + t, weight);
        weights = add(weights, weight);
    }
    return {highest, sum_lanes(weights)};
}

// sums[row] += weight[token] * v[token] in token order, for `Slices` x 16 of the head's values at once
template <int Bits, int Rows, int Slices>
inline void weigh(const Attention& a, int begin, int end, const float* weights, int slice, float* sums, int count) {
    F16 totals[Slices][Rows];
    for (int s = 0; s < Slices; s++)
        for (int m = 0; m < Rows; m++) totals[s][m] = zero();
    for (int token = begin; token < end; token += 16) {
        const Values<Bits, Slices> values(subblock_of<Bits>(a, token) + plane_bytes(Bits, a.head_width), a.head_width, slice);
        const int some = end - token < 16 ? end - token : 16;
        for (int t = 0; t < some; t++)
#pragma GCC unroll 4
            for (int s = 0; s < Slices; s++) {
                const F16 value = values.of_token(t, s);
#pragma GCC unroll 12
                for (int m = 0; m < Rows; m++)
                    totals[s][m] = fma(all(weights[m * kAttendTokens + token - begin + t]), value, totals[s][m]);
            }
    }
    for (int s = 0; s < Slices; s++)
        for (int m = 0; m < count; m++) store(sums + m * a.head_width + 16 * (slice + s), totals[s][m]);
}

template <int Bits, int Rows>
struct AttendTile {
    static constexpr int kSpans = Rows <= 3 ? 4 : Rows <= 6 ? 2 : 1;

    static void run(int count, const Attention& a, int chunk, int first, Softmax* state, float* sums, float* scores) {
        int rows[Rows];
        repeat_last(count, first, rows);
        const int begin = chunk * kAttendTokens;
        int end = begin;
        for (int m = 0; m < count; m++) end = a.limits[rows[m]] > end ? a.limits[rows[m]] : end;
        end = end < begin + kAttendTokens ? end : begin + kAttendTokens;
        int token = begin;
        for (; token + 16 * (kSpans - 1) < end; token += 16 * kSpans) score_spans<Bits, Rows, kSpans>(a, rows, token, scores);
        for (; token < end; token += 16) score_spans<Bits, Rows, 1>(a, rows, token, scores);
        const int width = (end - begin + 15) / 16 * 16;
        for (int m = 0; m < count; m++)
            state[first + m] = soften(scores + m * kAttendTokens, a.limits[rows[m]] - begin, width);
        for (int m = count; m < Rows; m++) memset(scores + m * kAttendTokens, 0, size_t(width) * 4);
        const int slices = a.head_width / 16;
        int slice = 0;
        for (; slice + kSpans <= slices; slice += kSpans)
            weigh<Bits, Rows, kSpans>(a, begin, end, scores, slice, sums + first * a.head_width, count);
        for (; slice < slices; slice++) weigh<Bits, Rows, 1>(a, begin, end, scores, slice, sums + first * a.head_width, count);
    }
};

template <int Bits>
struct Tiles {
    template <int Rows>
    using Of = AttendTile<Bits, Rows>;
};

// One chunk of tokens for every row: state = its softmax, sums = its weighted values. `scratch`: 12 x 256 floats.
template <int Bits>
void attend(const Attention& a, int chunk, Softmax* state, float* sums, float* scratch) {
    in_tiles<kTileRows>(a.rows, [&](int count, int first) { sized<Tiles<Bits>::template Of>(count, a, chunk, first, state, sums, scratch); });
}

// Chunks are merged one after the other, in order, whether one thread ran them or many.
void merge(const Softmax& part, const float* part_sums, Softmax& into, float* sums, int head_width) {
    if (part.weight == 0) return;
    const float highest = part.highest > into.highest ? part.highest : into.highest;
    const float keep = into.weight == 0 ? 0 : exponential(into.highest - highest);
    const float take = exponential(part.highest - highest);
    for (int d = 0; d < head_width; d += 16)
        store(sums + d, fma(load(part_sums + d), all(take), mul(load(sums + d), all(keep))));
    into = {highest, into.weight * keep + part.weight * take};
}

}  // namespace
