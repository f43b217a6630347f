// RoPE, the KV cache and attention over it. Included by ops_inl.h.
#pragma once

namespace {

// --- RoPE and the KV cache --------------------------------------------------------------------------------------------

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

// One token's K and V into its slot of a sub-block: [K: head_width x 16 tokens | V: 16 tokens x head_width]. K is stored
// across tokens so that a register of scores is sixteen tokens and needs no sum over lanes.
void store_kv(const float* k, const float* v, int head_dim, int head_width, uint16_t* subblock, int slot) {
    const F16 most = all(65504.0f), least = all(-65504.0f);  // as left operands they let NaN pass
    uint16_t halves[16];
    uint16_t* values = subblock + 16 * head_width + slot * head_width;
    for (int d = 0; d < head_dim; d += 16) {
        const int count = head_dim - d < 16 ? head_dim - d : 16;
        F16 key = zero(), value = zero();
        if (count == 16) {
            key = load(k + d), value = load(v + d);
        } else {
            float rest[32] = {};
            memcpy(rest, k + d, size_t(count) * 4), memcpy(rest + 16, v + d, size_t(count) * 4);
            key = load(rest), value = load(rest + 16);
        }
        store_half(halves, max(least, min(most, key)));
        store_half(values + d, max(least, min(most, value)));
        for (int i = 0; i < 16; i++) subblock[(d + i) * 16 + slot] = halves[i];
    }
}

// --- attention --------------------------------------------------------------------------------------------------------

inline const uint16_t* subblock_of(const Attention& a, int token) {
    const int64_t inside = token % a.block_tokens / 16;
    return a.kv + a.blocks[token / a.block_tokens] * a.block_stride + inside * 32 * a.head_width;
}

// scores[row][token] = q[row] . k[token], for `Spans` runs of sixteen tokens at once to keep the multipliers busy
template <int Rows, int Spans>
inline void score_spans(const Attention& a, const int (&rows)[Rows], int token, float* scores) {
    const uint16_t* keys[Spans];
    F16 sums[Spans][Rows];
    for (int s = 0; s < Spans; s++) {
        keys[s] = subblock_of(a, token + 16 * s);
        for (int m = 0; m < Rows; m++) sums[s][m] = zero();
    }
    for (int d = 0; d < a.head_width; d++)
#pragma GCC unroll 4
        for (int s = 0; s < Spans; s++) {
            const F16 key = load_half(keys[s] + 16 * d);
#pragma GCC unroll 12
            for (int m = 0; m < Rows; m++) sums[s][m] = fma(all(a.q[rows[m] * a.head_width + d]), key, sums[s][m]);
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
template <int Rows, int Slices>
inline void weigh(const Attention& a, int begin, int end, const float* weights, int slice, float* sums, int count) {
    F16 totals[Slices][Rows];
    for (int s = 0; s < Slices; s++)
        for (int m = 0; m < Rows; m++) totals[s][m] = zero();
    for (int token = begin; token < end; token += 16) {
        const uint16_t* values = subblock_of(a, token) + 16 * (a.head_width + slice);
        const int some = end - token < 16 ? end - token : 16;
        for (int t = 0; t < some; t++)
#pragma GCC unroll 4
            for (int s = 0; s < Slices; s++) {
                const F16 value = load_half(values + t * a.head_width + 16 * s);
#pragma GCC unroll 12
                for (int m = 0; m < Rows; m++)
                    totals[s][m] = fma(all(weights[m * kAttendTokens + token - begin + t]), value, totals[s][m]);
            }
    }
    for (int s = 0; s < Slices; s++)
        for (int m = 0; m < count; m++) store(sums + m * a.head_width + 16 * (slice + s), totals[s][m]);
}

template <int Rows>
struct Attend {
    static constexpr int kSpans = Rows <= 3 ? 4 : Rows <= 6 ? 2 : 1;

    static void run(int count, const Attention& a, int chunk, int first, Softmax* state, float* sums, float* scores) {
        int rows[Rows];
        repeat_last(count, first, rows);
        const int begin = chunk * kAttendTokens;
        int end = begin;
        for (int m = 0; m < count; m++) end = a.limits[rows[m]] > end ? a.limits[rows[m]] : end;
        end = end < begin + kAttendTokens ? end : begin + kAttendTokens;
        int token = begin;
        for (; token + 16 * (kSpans - 1) < end; token += 16 * kSpans) score_spans<Rows, kSpans>(a, rows, token, scores);
        for (; token < end; token += 16) score_spans<Rows, 1>(a, rows, token, scores);
        const int width = (end - begin + 15) / 16 * 16;
        for (int m = 0; m < count; m++)
            state[first + m] = soften(scores + m * kAttendTokens, a.limits[rows[m]] - begin, width);
        for (int m = count; m < Rows; m++) memset(scores + m * kAttendTokens, 0, size_t(width) * 4);
        const int slices = a.head_width / 16;
        int slice = 0;
        for (; slice + kSpans <= slices; slice += kSpans)
            weigh<Rows, kSpans>(a, begin, end, scores, slice, sums + first * a.head_width, count);
        for (; slice < slices; slice++) weigh<Rows, 1>(a, begin, end, scores, slice, sums + first * a.head_width, count);
    }
};

// One chunk of tokens for every row: state = its softmax, sums = its weighted values. `scratch`: 12 x 256 floats.
void attend(const Attention& a, int chunk, Softmax* state, float* sums, float* scratch) {
    in_tiles<kTileRows>(a.rows, [&](int count, int first) { sized<Attend>(count, a, chunk, first, state, sums, scratch); });
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
