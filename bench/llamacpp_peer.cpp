// Drives llama.cpp for bench/engine.py: one command a line on stdin, one line of milliseconds on stdout.
//   prefill TOKENS              one prompt, batches of 512
//   decode BATCH CONTEXT STEPS  BATCH separate sequences of CONTEXT tokens each; the median step
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

using Clock = std::chrono::steady_clock;

static double milliseconds(Clock::time_point since) {
    return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

struct Peer {
    llama_model* model;
    int threads;
    llama_context* context = nullptr;
    int sequences = 0, tokens = 0;
    llama_batch batch = llama_batch_init(512, 0, 1);

    void open(int want_sequences, int want_tokens) {
        if (context && sequences == want_sequences && tokens == want_tokens) return;
        if (context) llama_free(context);
        llama_context_params p = llama_context_default_params();
        p.n_ctx = uint32_t(want_sequences * want_tokens), p.n_seq_max = uint32_t(want_sequences);
        p.n_batch = p.n_ubatch = 512, p.n_threads = p.n_threads_batch = threads;
        context = llama_init_from_model(model, p);
        if (!context) exit(3);
        sequences = want_sequences, tokens = want_tokens;
    }

    void add(int position, int sequence, bool wanted) {
        const int i = batch.n_tokens++;
        batch.token[i] = (position * 37 + sequence * 101 + 11) % 40000, batch.pos[i] = position;
        batch.n_seq_id[i] = 1, batch.seq_id[i][0] = sequence, batch.logits[i] = wanted;
    }

    void decode() {
        if (llama_decode(context, batch)) exit(4);
    }

    void fill(int count) {
        for (int first = 0; first < count; first += 512) {
            batch.n_tokens = 0;
            for (int t = first; t < std::min(count, first + 512); t++) add(t, 0, t == count - 1);
            decode();
        }
    }

    double prefill(int count) {
        open(1, count + 64);
        llama_memory_clear(llama_get_memory(context), true);
        const auto began = Clock::now();
        fill(count);
        llama_get_logits_ith(context, -1);
        return milliseconds(began);
    }

    double steps(int size, int length, int count) {
        open(size, (length + count + 319) / 256 * 256);
        llama_memory_clear(llama_get_memory(context), true);
        fill(length);
        for (int s = 1; s < size; s++) llama_memory_seq_cp(llama_get_memory(context), 0, s, -1, -1);
        std::vector<double> times;
        for (int i = 0; i < count; i++) {
            batch.n_tokens = 0;
            for (int s = 0; s < size; s++) add(length + i, s, true);
            const auto began = Clock::now();
            decode();
            llama_get_logits_ith(context, 0);
            times.push_back(milliseconds(began));
        }
        std::sort(times.begin(), times.end());
        return times[times.size() / 2];
    }
};

static int quantize(const char* from, const char* to, int type) {
    llama_model_quantize_params p = llama_model_quantize_default_params();
    p.ftype = llama_ftype(type), p.allow_requantize = true, p.nthread = 2;
    return int(llama_model_quantize(from, to, &p));
}

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    llama_backend_init();
    if (argc == 5) return quantize(argv[2], argv[3], atoi(argv[4]));
    const auto began = Clock::now();
    Peer peer{llama_model_load_from_file(argv[2], llama_model_default_params()), atoi(argv[3])};
    if (!peer.model) return 1;
    printf("%.3f\n", milliseconds(began)), fflush(stdout);
    char line[128];
    while (fgets(line, sizeof line, stdin)) {
        int a, b, c;
        if (sscanf(line, "prefill %d", &a) == 1) printf("%.3f\n", peer.prefill(a));
        if (sscanf(line, "decode %d %d %d", &a, &b, &c) == 3) printf("%.3f\n", peer.steps(a, b, c));
        fflush(stdout);
    }
}
