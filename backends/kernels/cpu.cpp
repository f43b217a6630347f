// The CPU engine: one call runs a whole decoder step over a ragged batch. Nothing here knows files, text or scheduling.
//
//   open    check every size once, plan the scratch memory, start the threads
//   step    check the batch, then all threads walk the layers together (Engine::walk), phase by phase
//
// A phase is cut into parts that are handed out by an atomic counter; `settle` waits until the parts of all phases so far
// are done (see pool.h). No result depends on who ran a part (see ops_inl.h).
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>

#include "cpu/kvcodec.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace {

using namespace tidegate;

int round_up(int n, int to) { return (n + to - 1) / to * to; }

// --- choosing and checking --------------------------------------------------------------------------------------------

const Ops* ops_of(int isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == 2) return has_avx512 ? &ops_avx512 : nullptr;
    if (isa == 1) return has_avx2 ? &ops_avx2 : nullptr;
    if (isa < 0) return has_avx512 ? &ops_avx512 : has_avx2 ? &ops_avx2 : &ops_portable;
#endif
    return isa <= 0 ? &ops_portable : nullptr;
}

bool is_sound(const TgLinear& w) {
    const bool bits = w.bits == 4 || w.bits == 5 || w.bits == 6 || w.bits == 8;
    const bool group = w.group == 32 || w.group == 64 || w.group == 128;
    if (!w.panels || !bits || !group || w.rows < 1 || w.columns < 1 || w.rows > 1 << 24 || w.columns > 1 << 20) return false;
    const Panels p = panels_of(w);
    return w.bytes == p.panels * p.stride;
}

bool is_sound(const TgLinear& w, int rows, int columns) { return is_sound(w) && w.rows == rows && w.columns == columns; }

bool is_sound(const TgModel& m, const TgLayer& l) {
    const int q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
    return l.attention_norm && l.ffn_norm && is_sound(l.q, q, m.hidden) && is_sound(l.k, kv, m.hidden) &&
           is_sound(l.v, kv, m.hidden) && is_sound(l.o, m.hidden, q) && is_sound(l.gate, m.ffn, m.hidden) &&
           is_sound(l.up, m.ffn, m.hidden) && is_sound(l.down, m.hidden, m.ffn);
}

int64_t head_bytes(const TgModel& m) {
    return int64_t(m.block_tokens / 16) * 2 * plane_bytes(m.kv_bits, round_up(m.head_dim, 16));
}

int64_t kv_bytes(const TgModel& m) { return int64_t(m.layers) * m.kv_blocks * m.kv_heads * head_bytes(m); }

bool is_sound(const TgModel& m) {
    if (m.layers < 1 || m.layers > 4096 || m.hidden < 1 || m.ffn < 1 || m.heads < 1 || m.kv_heads < 1) return false;
    if (m.heads > 4096 || m.heads % m.kv_heads || m.heads / m.kv_heads > kAttendRows) return false;
    if (m.head_dim < 2 || m.head_dim % 2 || m.head_dim > 1024 || m.context < 1 || m.block_tokens < 16 ||
        m.block_tokens % 16 || m.kv_blocks < 1 || (m.kv_bits != 16 && m.kv_bits != 8 && m.kv_bits != 4))
        return false;
    if (!m.final_norm || !m.cosines || !m.sines || !m.layer || !m.kv || m.kv_bytes < kv_bytes(m)) return false;
    if (!is_sound(m.embed, m.vocabulary, m.hidden) || !is_sound(m.head, m.vocabulary, m.hidden)) return false;
    for (int i = 0; i < m.layers; i++)
        if (!is_sound(m, m.layer[i])) return false;
    return true;
}

bool are_within(const int32_t* values, int count, int limit) {
    for (int i = 0; i < count; i++)
        if (values[i] < 0 || values[i] >= limit) return false;
    return true;
}

bool is_sound(const TgModel& m, const TgStep& s, int sequence) {
    const int first = s.starts[sequence], last = s.starts[sequence + 1], length = s.lengths[sequence];
    if (first < 0 || last <= first || last > s.token_count || length < 1 || length > m.context) return false;
    for (int t = first; t < last; t++)
        if (s.positions[t] >= length) return false;
    const int used = (length + m.block_tokens - 1) / m.block_tokens;
    return used <= s.table_width && are_within(s.blocks + int64_t(sequence) * s.table_width, used, m.kv_blocks);
}

bool is_sound(const TgModel& m, const TgStep& s) {
    if (s.token_count < 1 || s.token_count > 1 << 20 || s.sequence_count < 1 || s.sampled_count < 0 ||
        s.sampled_count > s.token_count)
        return false;
    if (s.starts[0] != 0 || s.starts[s.sequence_count] != s.token_count) return false;
    if (s.sampled_count && !s.logits && !s.greedy) return false;
    if (s.logits && s.logits_stride < round_up(m.vocabulary, kLanes)) return false;
    if (!are_within(s.tokens, s.token_count, m.vocabulary) || !are_within(s.positions, s.token_count, m.context) ||
        !are_within(s.sampled, s.sampled_count, s.token_count))
        return false;
    for (int i = 0; i < s.sequence_count; i++)
        if (!is_sound(m, s, i)) return false;
    return true;
}

// --- scratch memory ---------------------------------------------------------------------------------------------------

// Zeroed, 64-byte aligned, grown to the largest step so far.
template <class T>
class Buffer {
   public:
    T* reserve(int64_t count) {
        if (count > count_) {
            void* grown = nullptr;
            const size_t bytes = size_t(count) * sizeof(T) + 64;  // kernels may read a register past a row
            if (posix_memalign(&grown, 64, bytes)) throw std::bad_alloc();
            memset(grown, 0, bytes);
            held_.reset(static_cast<T*>(grown));
            count_ = count;
        }
        return held_.get();
    }
    T* get() const { return held_.get(); }

   private:
    struct Free {
        void operator()(T* p) const { free(p); }
    };
    std::unique_ptr<T, Free> held_;
    int64_t count_ = 0;
};

class QuantisedRows {
   public:
    void reserve(int64_t rows, int columns) {
        view_.rows = int(rows), view_.columns = round_up(columns, kChunk), view_.stride = Activations::stride_of(rows);
        const int64_t slots = view_.chunks() * view_.stride, sums = Activations::groups_of(view_.columns) * view_.stride;
        view_.codes = codes_.reserve(2 * 32 * slots), view_.fine = view_.codes + 32 * slots;
        view_.scales = floats_.reserve(2 * slots + sums), view_.fine_scales = view_.scales + slots;
        view_.sums = view_.fine_scales + slots;
        view_.is_fine = flags_.reserve(slots);
    }
    const Activations& view() const { return view_; }

   private:
    Buffer<int8_t> codes_;
    Buffer<float> floats_;
    Buffer<uint8_t> flags_;
    Activations view_{};
};

// --- the embedding row ------------------------------------------------------------------------------------------------

int code_at(const uint8_t* chunk, int bits, int lane, int column) {
    const int quad = column / 4, byte = 4 * lane + column % 4;
    if (bits == 8) return chunk[64 * quad + byte];
    int code = chunk[64 * (quad / 2) + byte] >> (quad % 2 * 4) & 15;
    if (bits == 5) code |= (chunk[256 + byte] >> quad & 1) << 4;
    if (bits == 6) code |= (chunk[256 + 64 * (quad / 4) + byte] >> (quad % 4 * 2) & 3) << 4;
    return code;
}

float from_half(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const float value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                        : exponent     ? std::ldexp(float(mantissa + 1024), exponent - 25)
                                       : std::ldexp(float(mantissa), -24);
    return h & 0x8000 ? -value : value;
}

void dequantise_row(const TgLinear& w, int row, float* out) {
    const Panels p = panels_of(w);
    const uint8_t* panel = w.panels + row / kLanes * p.stride;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel) + row % kLanes;
    const float offset = w.asymmetric ? 0 : float(1 << (w.bits - 1));
    for (int g = 0; g < p.groups; g++) {
        const float scale = from_half(scales[g * kLanes]);
        const float minimum = w.asymmetric ? from_half(scales[(p.groups + g) * kLanes]) : -offset * scale;
        const int end = (g + 1) * w.group < w.columns ? (g + 1) * w.group : w.columns;
        for (int k = g * w.group; k < end; k++) {
            const uint8_t* chunk = panel + p.header + int64_t(k / kChunk) * chunk_bytes(w.bits);
            out[k] = scale * float(code_at(chunk, w.bits, row % kLanes, k % kChunk)) + minimum;
        }
    }
}

// --- the engine -------------------------------------------------------------------------------------------------------

// Queries of one sequence and one KV head that a thread attends to in one go. A lone query over a long context is split
// by chunk, each part leaving its softmax in `partials` for the merge that follows.
struct AttendPart {
    int sequence, kv_head, first, count;  // query tokens first ... first + count - 1
    int chunk, partial;                   // -1: all chunks, and no partial
};

class Engine {
   public:
    Engine(const TgModel& model, const Ops& ops, int threads) : model_(model), ops_(ops), pool_(threads) {
        store_kv_ = ops.store_kv[kv_format(model.kv_bits)], attend_ = ops.attend[kv_format(model.kv_bits)];
        layers_.reset(new TgLayer[size_t(model.layers)]);
        memcpy(layers_.get(), model.layer, sizeof(TgLayer) * size_t(model.layers));
        model_.layer = layers_.get();
        width_ = round_up(model.hidden, kChunk);
        head_width_ = round_up(model.head_dim, 16);
        query_width_ = round_up(model.heads * model.head_dim, kChunk);
        kv_width_ = round_up(model.kv_heads * model.head_dim, kChunk);
        ffn_width_ = round_up(model.ffn, kChunk);
        repeat_ = model.heads / model.kv_heads;
        phase_count_ = 12 * model.layers + 8;
        phases_.reset(new Phase[size_t(phase_count_)]);
        locals_.reset(new Local[size_t(threads)]);
    }

    TgStatus step(const TgStep& step) {
        if (!is_sound(model_, step)) return TG_BAD_STEP;
        step_ = &step;
        reserve();
        plan_attention();
        for (int i = 0; i < phase_count_; i++) phases_[i].clear();
        pool_.run([](void* self, int thread) { static_cast<Engine*>(self)->walk(thread); }, this);
        return TG_OK;
    }

    TgStatus copy_block(int source, int target) {
        if (source < 0 || source >= model_.kv_blocks || target < 0 || target >= model_.kv_blocks) return TG_BAD_STEP;
        const int64_t block = model_.kv_heads * head_bytes(model_);
        for (int layer = 0; layer < model_.layers; layer++) {
            uint8_t* blocks = model_.kv + int64_t(layer) * model_.kv_blocks * block;
            memmove(blocks + target * block, blocks + source * block, size_t(block));
        }
        return TG_OK;
    }

    // These touch the chunk's blocks alone, so that they may run beside a step.
    TgStatus encode_kv(const TgKvCodec& codec, const TgChunk& chunk, uint8_t* out, int64_t stride, int64_t* lengths) const {
        if (!KvLayer::is_sound(model_, codec, chunk)) return TG_BAD_STEP;
        KvLayer kv(model_, ops_, codec, chunk);
        for (int layer = 0; layer < model_.layers; layer++) {
            if (kv.most_bytes(layer) > stride) return TG_BAD_STEP;
            lengths[layer] = kv.encode(layer, out + layer * stride);
        }
        return TG_OK;
    }

    TgStatus decode_kv(const TgKvCodec& codec, const TgChunk& chunk, const uint8_t* const* layers,
                       const int64_t* lengths) const {
        if (!KvLayer::is_sound(model_, codec, chunk)) return TG_BAD_STEP;
        KvLayer kv(model_, ops_, codec, chunk);
        for (int layer = 0; layer < model_.layers; layer++)
            if (!kv.decode(layer, layers[layer], lengths[layer])) return TG_BAD_BYTES;
        return TG_OK;
    }

    TgStatus read_kv(const TgChunk& chunk, int layer, uint8_t* out, int64_t length) const {
        if (!is_within(model_, chunk) || layer < 0 || layer >= model_.layers) return TG_BAD_STEP;
        const KvPlanes planes(model_, chunk, layer);
        if (length != planes.bytes()) return TG_BAD_BYTES;
        planes.read(out);
        return TG_OK;
    }

    TgStatus write_kv(const TgChunk& chunk, int layer, const uint8_t* from, int64_t length) const {
        if (!is_within(model_, chunk) || layer < 0 || layer >= model_.layers) return TG_BAD_STEP;
        const KvPlanes planes(model_, chunk, layer);
        if (length != planes.bytes()) return TG_BAD_BYTES;
        planes.write(from);
        return TG_OK;
    }

   private:
    struct alignas(64) Local {
        Buffer<float> row, queries, scores, sums;
        QuantisedRows quantised;
        int32_t limits[kAttendRows];
        Softmax state[kAttendRows], part[kAttendRows];
        int phase = 0, settled = 0;
    };

    // Few rows are quantised by every thread for itself, which costs less than a phase.
    static constexpr int kOwnRows = 4;

    int rows() const { return step_->token_count; }

    void reserve() {
        const int64_t count = rows();
        hidden_.reserve(count * width_);
        queries_.reserve(count * query_width_);
        keys_.reserve(count * kv_width_);
        values_.reserve(count * kv_width_);
        attended_.reserve(count * query_width_);
        inner_.reserve(count * ffn_width_);
        gathered_.reserve(int64_t(step_->sampled_count) * width_);
        if (!step_->logits) logits_.reserve(int64_t(step_->sampled_count) * round_up(model_.vocabulary, kLanes));
        quantised_hidden_.reserve(count, model_.hidden);
        quantised_queries_.reserve(count, model_.heads * model_.head_dim);
        quantised_inner_.reserve(count, model_.ffn);
        for (int t = 0; t < pool_.threads(); t++) {
            Local& local = locals_[t];
            const int widest = ffn_width_ > width_ ? ffn_width_ : width_;
            local.row.reserve(widest > query_width_ ? widest : query_width_);
            local.queries.reserve(kAttendRows * head_width_);
            local.scores.reserve(12 * kAttendTokens);
            local.sums.reserve(2 * kAttendRows * head_width_);
        }
    }

    void plan_attention() {
        const int most = kAttendRows / repeat_;
        int64_t parts = 0, partials = 0;
        for (int pass = 0; pass < 2; pass++) {
            if (pass) parts_.reserve(parts), part_states_.reserve(partials * repeat_);
            if (pass) part_sums_.reserve(partials * repeat_ * head_width_);
            parts = partials = 0;
            for (int s = 0; s < step_->sequence_count; s++) plan_sequence(s, most, pass == 1, parts, partials);
        }
        part_count_ = int(parts);
    }

    // Late queries see more tokens: they are planned first, so that the long parts do not end the phase.
    void plan_sequence(int s, int most, bool write, int64_t& parts, int64_t& partials) {
        const int first = step_->starts[s], last = step_->starts[s + 1];
        const int chunks = (step_->positions[first] + kAttendTokens) / kAttendTokens;
        const bool split = last - first == 1 && chunks > 1;
        for (int end = last; end > first; end -= most)
            for (int head = 0; head < model_.kv_heads; head++)
                for (int chunk = 0; chunk < (split ? chunks : 1); chunk++) {
                    const int begin = end - most > first ? end - most : first;
                    const int partial = split ? int(partials++) : -1;
                    if (write) parts_.get()[parts] = {s, head, begin, end - begin, split ? chunk : -1, partial};
                    parts++;
                }
    }

    // Takes part in the next phase: [0, count) in runs of about an eighth of a thread's share.
    template <class Use>
    void share(int thread, int count, Use use) {
        phases_[locals_[thread].phase++].take_part(count, count / (8 * pool_.threads()) + 1, use);
    }

    void settle(int thread) {
        Local& local = locals_[thread];
        for (; local.settled < local.phase; local.settled++) phases_[local.settled].await();
    }

    template <class Use>
    void share_each(int thread, int count, Use use) {
        share(thread, count, [&](int first, int last) {
            for (int i = first; i < last; i++) use(i);
        });
    }

    // All rows as int8: quantise_row(activations, row) by every thread for itself, or shared and settled. The one phase
    // that follows uses them; a late thread that finds it over need not quantise.
    template <class Quantise>
    const Activations& quantised(int thread, QuantisedRows& shared, int count, int columns, Quantise quantise_row) {
        Local& local = locals_[thread];
        if (count <= kOwnRows) {
            local.quantised.reserve(count, columns);
            if (phases_[local.phase].is_over()) return local.quantised.view();
            for (int row = 0; row < count; row++) quantise_row(local.quantised.view(), row);
            return local.quantised.view();
        }
        share_each(thread, count, [&](int row) { quantise_row(shared.view(), row); });
        settle(thread);
        return shared.view();
    }

    const Activations& normed(int thread, const float* from, int count, const float* weight) {
        float* scratch = locals_[thread].row.get();
        return quantised(thread, quantised_hidden_, count, model_.hidden, [&, scratch](const Activations& to, int row) {
            ops_.rms_quantise(from + int64_t(row) * width_, weight, model_.hidden, model_.norm_eps, scratch, to, row);
        });
    }

    const Activations& plain(int thread, QuantisedRows& shared, const float* from, int columns, int stride) {
        return quantised(thread, shared, rows(), columns, [&](const Activations& to, int row) {
            ops_.quantise(from + int64_t(row) * stride, to, row);
        });
    }

    void product(int thread, const TgLinear& w, const Activations& x, float* out, int64_t stride, bool accumulate) {
        share(thread, panels_of(w).panels,
              [&](int first, int last) { ops_.matmul(w, x, first, last, out, stride, accumulate); });
    }

    // One step as every thread walks it.
    void walk(int thread) {
        locals_[thread].phase = locals_[thread].settled = 0;
        embed(thread);
        settle(thread);
        for (int i = 0; i < model_.layers; i++) {
            const TgLayer& layer = model_.layer[i];
            project(thread, layer);
            settle(thread);
            write_kv(thread, layer, i);
            settle(thread);
            share_each(thread, part_count_, [&](int part) { attend(thread, layer, i, parts_.get()[part]); });
            settle(thread);
            merge_partials(thread);
            const Activations& attended =
                plain(thread, quantised_queries_, attended_.get(), model_.heads * model_.head_dim, query_width_);
            product(thread, layer.o, attended, hidden_.get(), width_, true);
            settle(thread);
            feed_forward(thread, layer);
        }
        predict(thread);
    }

    void embed(int thread) {
        share_each(thread, rows(), [&](int row) {
            float* out = hidden_.get() + int64_t(row) * width_;
            memset(out, 0, size_t(width_) * 4);
            dequantise_row(model_.embed, step_->tokens[row], out);
        });
    }

    // q, k and v in one phase: the panels of the three matrices are one list.
    void project(int thread, const TgLayer& layer) {
        const Activations& x = normed(thread, hidden_.get(), rows(), layer.attention_norm);
        const TgLinear* matrices[] = {&layer.q, &layer.k, &layer.v};
        float* outs[] = {queries_.get(), keys_.get(), values_.get()};
        const int64_t strides[] = {query_width_, kv_width_, kv_width_};
        const int ends[] = {panels_of(layer.q).panels, panels_of(layer.k).panels, panels_of(layer.v).panels};
        share(thread, ends[0] + ends[1] + ends[2], [&](int first, int last) {
            for (int i = 0; i < 3; first -= ends[i], last -= ends[i], i++) {
                const int from = first > 0 ? first : 0, to = last < ends[i] ? last : ends[i];
                if (from < to) ops_.matmul(*matrices[i], x, from, to, outs[i], strides[i], false);
            }
        });
    }

    const float* rope(const float* table, int token) const {
        return table + int64_t(step_->positions[token]) * (model_.head_dim / 2);
    }

    uint8_t* head_of(int layer, int block, int kv_head) const {
        return model_.kv + ((int64_t(layer) * model_.kv_blocks + block) * model_.kv_heads + kv_head) * head_bytes(model_);
    }

    int sequence_of(int token) const {
        int low = 0, high = step_->sequence_count;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (step_->starts[middle] <= token ? low : high) = middle;
        }
        return low;
    }

    void write_kv(int thread, const TgLayer& layer, int index) {
        float* rotated = locals_[thread].row.get();
        const int64_t subblock = 2 * plane_bytes(model_.kv_bits, head_width_);
        share_each(thread, rows(), [&, rotated](int token) {
            if (step_->queries) show_query(index, token);
            const int position = step_->positions[token], inside = position % model_.block_tokens;
            const int32_t* table = step_->blocks + int64_t(sequence_of(token)) * step_->table_width;
            for (int head = 0; head < model_.kv_heads; head++) {
                const int64_t at = int64_t(token) * kv_width_ + head * model_.head_dim;
                ops_.rotate(keys_.get() + at, layer.k_norm, model_.norm_eps, rope(model_.cosines, token),
                            rope(model_.sines, token), model_.head_dim, 1, rotated);
                uint8_t* block = head_of(index, table[position / model_.block_tokens], head);
                store_kv_(rotated, values_.get() + at, model_.head_dim, head_width_, block + inside / 16 * subblock,
                          inside % 16);
            }
        });
    }

    void show_query(int layer, int token) {
        const int64_t width = model_.heads * model_.head_dim;
        memcpy(step_->queries + (int64_t(layer) * rows() + token) * width, queries_.get() + int64_t(token) * query_width_,
               size_t(width) * 4);
    }

    Attention queries_of(int thread, const TgLayer& layer, int index, const AttendPart& part) {
        Local& local = locals_[thread];
        const float scale = 1 / std::sqrt(float(model_.head_dim));
        int row = 0;
        for (int token = part.first; token < part.first + part.count; token++)
            for (int head = part.kv_head * repeat_; head < (part.kv_head + 1) * repeat_; head++, row++) {
                ops_.rotate(queries_.get() + int64_t(token) * query_width_ + head * model_.head_dim, layer.q_norm,
                            model_.norm_eps, rope(model_.cosines, token), rope(model_.sines, token), model_.head_dim,
                            scale, local.queries.get() + row * head_width_);
                if (model_.kv_bits == 4) ops_.turn(local.queries.get() + row * head_width_, model_.head_dim, head_width_);
                local.limits[row] = step_->positions[token] + 1;
            }
        const int32_t* table = step_->blocks + int64_t(part.sequence) * step_->table_width;
        return {local.queries.get(),
                local.limits,
                row,
                head_width_,
                head_of(index, 0, part.kv_head),
                model_.kv_heads * head_bytes(model_),
                table,
                model_.block_tokens};
    }

    void attend(int thread, const TgLayer& layer, int index, const AttendPart& part) {
        Local& local = locals_[thread];
        const Attention a = queries_of(thread, layer, index, part);
        if (part.partial >= 0) {
            const int64_t at = int64_t(part.partial) * repeat_;
            attend_(a, part.chunk, part_states_.get() + at, part_sums_.get() + at * head_width_, local.scores.get());
            return;
        }
        float *totals = local.sums.get(), *sums = totals + kAttendRows * head_width_;
        for (int row = 0; row < a.rows; row++) local.state[row] = kNothing;
        memset(totals, 0, size_t(a.rows * head_width_) * 4);
        const int chunks = (a.limits[a.rows - 1] + kAttendTokens - 1) / kAttendTokens;
        for (int chunk = 0; chunk < chunks; chunk++) {
            attend_(a, chunk, local.part, sums, local.scores.get());
            for (int row = 0; row < a.rows; row++)
                ops_.merge(local.part[row], sums + row * head_width_, local.state[row], totals + row * head_width_,
                           head_width_);
        }
        for (int row = 0; row < a.rows; row++)
            finish(part.first + row / repeat_, part.kv_head * repeat_ + row % repeat_, local.state[row],
                   totals + row * head_width_);
    }

    void finish(int token, int head, const Softmax& state, const float* sums) {
        float* out = attended_.get() + int64_t(token) * query_width_ + head * model_.head_dim;
        for (int d = 0; d < model_.head_dim; d++) out[d] = sums[d] / state.weight;
    }

    // The parts of one query follow each other in the plan; whoever gets the first of them merges them all.
    void merge_partials(int thread) {
        bool any = false;
        for (int i = 0; i < part_count_; i++) any |= parts_.get()[i].partial >= 0;
        if (!any) return;
        share_each(thread, part_count_, [&](int i) {
            if (parts_.get()[i].chunk == 0) merge_query(thread, i);
        });
        settle(thread);
    }

    void merge_query(int thread, int first) {
        const AttendPart& head = parts_.get()[first];
        float* totals = locals_[thread].sums.get();
        for (int row = 0; row < repeat_; row++) {
            Softmax state = kNothing;
            memset(totals, 0, size_t(head_width_) * 4);
            for (int i = first; i < part_count_ && parts_.get()[i].chunk == i - first; i++) {
                const int64_t at = int64_t(parts_.get()[i].partial) * repeat_ + row;
                ops_.merge(part_states_.get()[at], part_sums_.get() + at * head_width_, state, totals, head_width_);
            }
            finish(head.first, head.kv_head * repeat_ + row, state, totals);
        }
    }

    void feed_forward(int thread, const TgLayer& layer) {
        const Activations& x = normed(thread, hidden_.get(), rows(), layer.ffn_norm);
        share(thread, panels_of(layer.gate).panels, [&](int first, int last) {
            ops_.swiglu(layer.gate, layer.up, x, first, last, inner_.get(), ffn_width_);
        });
        settle(thread);
        const Activations& inner = plain(thread, quantised_inner_, inner_.get(), model_.ffn, ffn_width_);
        product(thread, layer.down, inner, hidden_.get(), width_, true);
        settle(thread);
    }

    void predict(int thread) {
        const int count = step_->sampled_count;
        if (!count) return;
        share_each(thread, count, [&](int i) {
            memcpy(gathered_.get() + int64_t(i) * width_, hidden_.get() + int64_t(step_->sampled[i]) * width_,
                   size_t(width_) * 4);
        });
        settle(thread);
        Activations x = normed(thread, gathered_.get(), count, model_.final_norm);
        x.rows = count;
        float* logits = step_->logits ? step_->logits : logits_.get();
        const int64_t stride = step_->logits ? step_->logits_stride : round_up(model_.vocabulary, kLanes);
        product(thread, model_.head, x, logits, stride, false);
        if (!step_->greedy) return;
        settle(thread);
        share_each(thread, count,
                   [&](int i) { step_->greedy[i] = ops_.argmax(logits + i * stride, model_.vocabulary); });
    }

    TgModel model_;
    const Ops& ops_;
    StoreKv* store_kv_;
    Attend* attend_;
    Pool pool_;
    std::unique_ptr<TgLayer[]> layers_;
    std::unique_ptr<Phase[]> phases_;
    std::unique_ptr<Local[]> locals_;
    int width_, head_width_, query_width_, kv_width_, ffn_width_, repeat_, phase_count_, part_count_ = 0;
    const TgStep* step_ = nullptr;
    Buffer<float> hidden_, queries_, keys_, values_, attended_, inner_, gathered_, logits_, part_sums_;
    Buffer<AttendPart> parts_;
    Buffer<Softmax> part_states_;
    QuantisedRows quantised_hidden_, quantised_queries_, quantised_inner_;
};

template <class Body>
int32_t guarded(Body body) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return TG_NO_MEMORY;
    } catch (const std::system_error&) {
        return TG_NO_THREAD;
    }
}

}  // namespace

// --- the border -------------------------------------------------------------------------------------------------------

#pragma GCC visibility push(default)

extern "C" {

// Sizes of TgLinear, TgLayer, TgModel, TgStep, TgTransform, TgKvCodec, TgChunk.
void tg_layout(int32_t sizes[7]) {
    sizes[0] = sizeof(TgLinear), sizes[1] = sizeof(TgLayer), sizes[2] = sizeof(TgModel), sizes[3] = sizeof(TgStep);
    sizes[4] = sizeof(TgTransform), sizes[5] = sizeof(TgKvCodec), sizes[6] = sizeof(TgChunk);
}

// isa: -1 the best of this machine, 0 portable, 1 AVX2, 2 AVX-512 VNNI. Null when the machine lacks it.
const char* tg_isa(int32_t isa) {
    const Ops* ops = ops_of(isa);
    return ops ? ops->name : nullptr;
}

int64_t tg_panel_bytes(const TgLinear* w) {
    const Panels p = panels_of(*w);
    return p.panels * p.stride;
}

// Everything `model` points at must outlive the engine.
int32_t tg_open(const TgModel* model, int32_t isa, int32_t threads, void** engine) {
    return guarded([&]() -> int32_t {
        const Ops* ops = ops_of(isa);
        if (!ops) return TG_NO_ISA;
        if (!is_sound(*model) || threads < 1 || threads > 1024) return TG_BAD_MODEL;
        *engine = new Engine(*model, *ops, threads);
        return TG_OK;
    });
}

int32_t tg_step(void* engine, const TgStep* step) {
    return guarded([&]() -> int32_t { return static_cast<Engine*>(engine)->step(*step); });
}

int32_t tg_copy_block(void* engine, int32_t source, int32_t target) {
    return static_cast<Engine*>(engine)->copy_block(source, target);
}

// One layer of a chunk as cpu/kvplanes.h has it; `length` must be what that takes.
int32_t tg_read_kv(void* engine, const TgChunk* chunk, int32_t layer, uint8_t* out, int64_t length) {
    return guarded([&]() -> int32_t { return static_cast<Engine*>(engine)->read_kv(*chunk, layer, out, length); });
}

int32_t tg_write_kv(void* engine, const TgChunk* chunk, int32_t layer, const uint8_t* from, int64_t length) {
    return guarded([&]() -> int32_t { return static_cast<Engine*>(engine)->write_kv(*chunk, layer, from, length); });
}

// A layer's bytes go to out + layer * stride, where `stride` is the most that a layer can take.
int32_t tg_encode_kv(void* engine, const TgKvCodec* codec, const TgChunk* chunk, uint8_t* out, int64_t stride,
                     int64_t* lengths) {
    return guarded([&]() -> int32_t {
        return static_cast<Engine*>(engine)->encode_kv(*codec, *chunk, out, stride, lengths);
    });
}

int32_t tg_decode_kv(void* engine, const TgKvCodec* codec, const TgChunk* chunk, const uint8_t* const* layers,
                     const int64_t* lengths) {
    return guarded(
        [&]() -> int32_t { return static_cast<Engine*>(engine)->decode_kv(*codec, *chunk, layers, lengths); });
}

void tg_close(void* engine) { delete static_cast<Engine*>(engine); }

// One product outside a step: out [count, out_stride] = x [count, x_stride] quantised, times w, in the tiles of a step;
// `seen` [count, columns rounded up to 32] gets the values that the codes of x stand for.
int32_t tg_matmul(int32_t isa, const TgLinear* w, const float* x, int64_t x_stride, int32_t count, float* out,
                  int64_t out_stride, float* seen) {
    return guarded([&]() -> int32_t {
        const Ops* ops = ops_of(isa);
        if (!ops) return TG_NO_ISA;
        if (!is_sound(*w) || count < 1) return TG_BAD_MODEL;
        QuantisedRows rows;
        rows.reserve(count, w->columns);
        const Activations& a = rows.view();
        if (x_stride < a.columns || out_stride < round_up(w->rows, kLanes)) return TG_BAD_STEP;
        for (int row = 0; row < count; row++) ops->quantise(x + row * x_stride, a, row);
        for (int row = 0; seen && row < count; row++)
            for (int k = 0; k < a.columns; k++) seen[int64_t(row) * a.columns + k] = a.value(row, k);
        ops->matmul(*w, a, 0, panels_of(*w).panels, out, out_stride, false);
        return TG_OK;
    });
}
}

#pragma GCC visibility pop
