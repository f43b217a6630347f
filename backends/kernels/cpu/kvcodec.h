// One layer of a chunk of 256 tokens between the cache's blocks and a run of bytes, as the transform codec has it:
//
//   u16 escapes, u16 rows
//   symbols   [K, V][groups of heads][kept / 4][256 tokens][4], 128 more than they mean; see TgTransform
//   escapes   u16 kept channel, counted over all groups; u8 token; i16 what the symbol is short of
//   rows      u8 token each; then each one's K and V as the cache has them, [kv_heads][K, V][head_dim] halves
//
// A row is a token that symbols cannot say: the first ones of a sequence, which attention leans on, and what is not
// finite. What is read may be anybody's: counts are held to the length before anything is done with them.
#pragma once
#include <cmath>
#include <cstring>
#include <memory>

#include "kvplanes.h"

namespace tidegate {

constexpr int kMostEscapes = 4096, kEscapeBytes = 5, kHeadBytes = 4;

inline uint16_t half_at(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }
inline void put_half_at(uint8_t* p, int value) { p[0] = uint8_t(value), p[1] = uint8_t(value >> 8); }

class KvLayer {
   public:
    KvLayer(const TgModel& model, const Ops& ops, const TgKvCodec& codec, const TgChunk& chunk)
        : model_(model), ops_(ops), codec_(codec), chunk_(chunk) {
        head_width_ = (model.head_dim + 15) / 16 * 16;
        groups_ = model.kv_heads / codec.group_heads;
        const int channels = model.kv_heads * model.head_dim, half = model.head_dim / 2;
        floats_.reset(new float[size_t(half) * 4 * kChunkTokens + size_t(2 * channels + 4) * 2 * 16]);
        turn_ = floats_.get(), turn_back_ = turn_ + 2 * half * kChunkTokens;
        keys_ = turn_back_ + 2 * half * kChunkTokens, values_ = keys_ + 16 * channels, coefficients_ = values_ + 16 * channels;
        for (int t = 0; t < kChunkTokens; t++)
            for (int j = 0; j < half; j++) {
                const int64_t at = int64_t(chunk.first + t) * half + j;
                const float c = model.cosines[at], s = model.sines[at], square = c * c + s * s;  // not 1 where YaRN scales
                turn_[j * kChunkTokens + t] = c, turn_[(half + j) * kChunkTokens + t] = s;
                turn_back_[j * kChunkTokens + t] = c / square, turn_back_[(half + j) * kChunkTokens + t] = s / square;
            }
    }

    static bool is_sound(const TgModel& m, const TgKvCodec& c, const TgChunk& chunk) {
        if (m.kv_bits != 16 || c.layers != m.layers || c.kv_heads != m.kv_heads || c.head_dim != m.head_dim) return false;
        if (c.group_heads < 1 || m.kv_heads % c.group_heads || !c.transforms) return false;
        const int parts = 2 * (m.kv_heads / c.group_heads), channels = c.group_heads * m.head_dim;
        for (int i = 0; i < m.layers * parts; i++) {
            const TgTransform& t = c.transforms[i];
            if (!t.mean || !t.scales || !t.sums || !t.encode || !t.decode || t.channels != channels) return false;
            if (t.kept < 4 || t.kept % 4 || t.kept > channels + 3) return false;
        }
        return is_within(m, chunk) && m.kv_heads * m.head_dim * 2 < 1 << 16;
    }

    // Bytes of a layer's symbols, and the most that a layer takes.
    int64_t symbol_bytes(int layer) const {
        int64_t kept = 0;
        for (int part = 0; part < 2 * groups_; part++) kept += transform(layer, part).kept;
        return kept * kChunkTokens;
    }
    int64_t most_bytes(int layer) const {
        return kHeadBytes + symbol_bytes(layer) + kMostEscapes * kEscapeBytes + kChunkTokens * (1 + row_bytes());
    }

    int64_t encode(int layer, uint8_t* out) {
        escapes_ = 0;
        for (int t = 0; t < kChunkTokens; t++) is_row_[t] = chunk_.first + t < chunk_.sinks;
        for (int run = 0; run < kChunkTokens / 16; run++) encode_run(layer, run, out + kHeadBytes);
        uint8_t* to = out + kHeadBytes + symbol_bytes(layer);
        memcpy(to, escape_bytes_, size_t(escapes_ * kEscapeBytes));
        to += escapes_ * kEscapeBytes;
        int rows = 0;
        for (int t = 0; t < kChunkTokens; t++)
            if (is_row_[t]) to[rows++] = uint8_t(t);
        to += rows;
        for (int t = 0; t < kChunkTokens; t++)
            if (is_row_[t]) to = row<true>(layer, t, to);
        put_half_at(out, escapes_), put_half_at(out + 2, rows);
        return to - out;
    }

    bool decode(int layer, const uint8_t* from, int64_t length) {
        const int64_t symbols = symbol_bytes(layer);
        if (length < kHeadBytes + symbols) return false;
        const int escapes = half_at(from), rows = half_at(from + 2);
        if (escapes > kMostEscapes || rows > kChunkTokens) return false;
        if (length != kHeadBytes + symbols + escapes * kEscapeBytes + rows * (1 + row_bytes())) return false;
        const uint8_t *escape = from + kHeadBytes + symbols, *row_tokens = escape + escapes * kEscapeBytes;
        for (int i = 0; i < escapes; i++)
            if (half_at(escape + i * kEscapeBytes) * kChunkTokens >= symbols) return false;
        for (int run = 0; run < kChunkTokens / 16; run++) decode_run(layer, run, from + kHeadBytes, escape, escapes);
        const uint8_t* row_at = row_tokens + rows;
        for (int i = 0; i < rows; i++) row_at = row<false>(layer, row_tokens[i], const_cast<uint8_t*>(row_at));
        return true;
    }

   private:
    int row_bytes() const { return model_.kv_heads * model_.head_dim * 4; }

    const TgTransform& transform(int layer, int part) const { return codec_.transforms[layer * 2 * groups_ + part]; }

    uint8_t* run_of(int layer, int run, int head) const { return tidegate::run_of(model_, chunk_, layer, run, head); }

    void encode_run(int layer, int run, uint8_t* symbols) {
        const float *cosines = turn_back_ + 16 * run, *sines = cosines + model_.head_dim / 2 * kChunkTokens;
        for (int head = 0; head < model_.kv_heads; head++) {
            const int64_t at = int64_t(head) * model_.head_dim * 16;
            ops_.read_run(run_of(layer, run, head), model_.head_dim, head_width_, cosines, sines, keys_ + at, values_ + at);
        }
        int channel = 0;
        for (int part = 0; part < 2 * groups_; part++) {
            const TgTransform& t = transform(layer, part);
            const bool is_sound = ops_.centre(t.mean, t.channels, lanes_of(part));
            if (!is_sound) drop_broken(t.channels, lanes_of(part), run);
            uint8_t* to = symbols + (int64_t(channel) * kChunkTokens + 64 * run);
            if (ops_.encode_run(t, lanes_of(part), coefficients_, to) > 127) note_escapes(t.kept, channel, run);
            channel += t.kept;
        }
    }

    float* lanes_of(int part) const {
        return (part < groups_ ? keys_ : values_) + int64_t(part % groups_) * codec_.group_heads * model_.head_dim * 16;
    }

    // Tokens with what is not finite become rows; their symbols say nothing.
    void drop_broken(int channels, float* lanes, int run) {
        for (int slot = 0; slot < 16; slot++) {
            float poison = 0;
            for (int c = 0; c < channels; c++) poison += lanes[16 * c + slot] * 0;
            if (poison == 0) continue;
            is_row_[16 * run + slot] = true;
            for (int c = 0; c < channels; c++) lanes[16 * c + slot] = 0;
        }
    }

    void note_escapes(int kept, int channel, int run) {
        for (int slot = 0; slot < 16; slot++)
            for (int k = 0; k < kept && !is_row_[16 * run + slot]; k++)
                if (std::fabs(coefficients_[16 * k + slot]) > 127) note_escape(channel + k, 16 * run + slot, coefficients_[16 * k + slot]);
    }

    void note_escape(int channel, int token, float coefficient) {
        const float rest = coefficient - (coefficient > 0 ? 127 : -127);
        is_row_[token] |= std::fabs(rest) > 32767 || escapes_ == kMostEscapes;
        if (is_row_[token]) return;
        uint8_t* to = escape_bytes_ + kEscapeBytes * escapes_++;
        put_half_at(to, channel), to[2] = uint8_t(token), put_half_at(to + 3, int(rest));
    }

    void decode_run(int layer, int run, const uint8_t* symbols, const uint8_t* escape, int escapes) {
        int channel = 0;
        for (int part = 0; part < 2 * groups_; part++) {
            const TgTransform& t = transform(layer, part);
            ops_.decode_run(t, symbols + (int64_t(channel) * kChunkTokens + 64 * run), lanes_of(part));
            for (int i = 0; i < escapes; i++) add_escape(t, escape + i * kEscapeBytes, channel, run, lanes_of(part));
            channel += t.kept;
        }
        const float *cosines = turn_ + 16 * run, *sines = cosines + model_.head_dim / 2 * kChunkTokens;
        for (int head = 0; head < model_.kv_heads; head++) {
            const int64_t at = int64_t(head) * model_.head_dim * 16;
            ops_.write_run(keys_ + at, values_ + at, model_.head_dim, head_width_, cosines, sines, run_of(layer, run, head));
        }
    }

    static void add_escape(const TgTransform& t, const uint8_t* escape, int channel, int run, float* lanes) {
        const int k = half_at(escape) - channel, slot = escape[2] - 16 * run;
        if (slot < 0 || slot >= 16 || k < 0 || k >= t.kept) return;
        const float rest = int16_t(half_at(escape + 3));
        for (int c = 0; c < t.channels; c++) lanes[16 * c + slot] += t.scales[c] * float(t.decode[(k / 4 * t.channels + c) * 4 + k % 4]) * rest;
    }

    // One token's halves out of the cache, or into it; returns where its bytes end.
    template <bool IsOut>
    uint8_t* row(int layer, int token, uint8_t* bytes) const {
        for (int head = 0; head < model_.kv_heads; head++) {
            uint16_t* keys = reinterpret_cast<uint16_t*>(run_of(layer, token / 16, head)) + token % 16;
            uint16_t* values = keys - token % 16 + 16 * head_width_ + token % 16 * head_width_;
            for (int d = 0; d < model_.head_dim; d++, bytes += 2) move<IsOut>(keys + 16 * d, bytes);
            for (int d = 0; d < model_.head_dim; d++, bytes += 2) move<IsOut>(values + d, bytes);
        }
        return bytes;
    }

    template <bool IsOut>
    static void move(uint16_t* half, uint8_t* bytes) {
        if (IsOut) memcpy(bytes, half, 2);
        else memcpy(half, bytes, 2);
    }

    const TgModel& model_;
    const Ops& ops_;
    const TgKvCodec& codec_;
    const TgChunk& chunk_;
    int head_width_, groups_, escapes_ = 0;
    std::unique_ptr<float[]> floats_;
    float *turn_, *turn_back_, *keys_, *values_, *coefficients_;  // turns: cosines, then sines, [head_dim / 2][256] each
    uint8_t escape_bytes_[kMostEscapes * kEscapeBytes];
    bool is_row_[kChunkTokens];
};

}  // namespace tidegate
