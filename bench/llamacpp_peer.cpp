// Drives llama.cpp for bench/engine.py and bench/sessions.py, which document the commands; one a line on stdin, one line of answer on stdout.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

constexpr int BATCH = 512;

static double now_ms() {
    static const bool cpu = getenv("CLOCK") && !strcmp(getenv("CLOCK"), "cpu");
    timespec t;
    clock_gettime(cpu ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

static double loss(const float* logits, int count, int said) {
    const float most = *std::max_element(logits, logits + count);
    double sum = 0;
    for (int i = 0; i < count; i++) sum += std::exp(double(logits[i] - most));
    return most + std::log(sum) - logits[said];
}

struct Peer {
    llama_model* model;
    int threads;
    llama_context* context = nullptr;
    int sequences = 0, tokens = 0, filled = 0;
    llama_batch batch = llama_batch_init(BATCH, 0, 1);

    // Sequences have their own KV streams: a unified cache would make each of them attend over the cells of all.
    void open(int want_sequences, int want_tokens) {
        if (context && sequences == want_sequences && tokens == want_tokens) return;
        if (context) llama_free(context);
        llama_context_params p = llama_context_default_params();
        p.n_ctx = uint32_t(want_sequences * want_tokens), p.n_seq_max = uint32_t(want_sequences);
        p.n_batch = p.n_ubatch = BATCH, p.n_threads = p.n_threads_batch = threads, p.kv_unified = false;
        context = llama_init_from_model(model, p);
        if (!context) exit(3);
        sequences = want_sequences, tokens = want_tokens, filled = 0;
    }

    llama_memory_t memory() const { return llama_get_memory(context); }

    void add(int token, int position, int sequence, bool wanted) {
        const int i = batch.n_tokens++;
        batch.token[i] = token, batch.pos[i] = position;
        batch.n_seq_id[i] = 1, batch.seq_id[i][0] = sequence, batch.logits[i] = wanted;
    }

    void decode() {
        if (llama_decode(context, batch)) exit(4);
    }

    static int token(int position, int sequence) { return (position * 37 + sequence * 101 + 11) % 40000; }

    void read(int count) {
        llama_memory_clear(memory(), true);
        filled = 0;
        for (int first = 0; first < count; first += BATCH) {
            batch.n_tokens = 0;
            for (int t = first; t < std::min(count, first + BATCH); t++) add(token(t, 0), t, 0, t == count - 1);
            decode();
        }
        llama_get_logits_ith(context, -1);
    }

    double prefill(int count) {
        open(1, count + 64);
        const double began = now_ms();
        read(count);
        return now_ms() - began;
    }

    // The state of a prompt to a file, as llama-server's slot save does it.
    double save(int count, const char* path) {
        open(1, count + 320);
        read(count);
        std::vector<llama_token> tokens(static_cast<size_t>(count));
        for (int t = 0; t < count; t++) tokens[size_t(t)] = token(t, 0);
        const double began = now_ms();
        if (!llama_state_seq_save_file(context, path, 0, tokens.data(), tokens.size())) exit(6);
        return now_ms() - began;
    }

    // The state back, as slot restore does it, and then the next `more` tokens of the prompt and their logits.
    double restore(int count, int more, const char* path) {
        open(1, count + 320);
        llama_memory_clear(memory(), true);
        filled = 0;
        std::vector<llama_token> tokens(static_cast<size_t>(count));
        size_t found = 0;
        const double began = now_ms();
        if (!llama_state_seq_load_file(context, path, 0, tokens.data(), tokens.size(), &found)) exit(7);
        if (found != tokens.size()) exit(8);
        batch.n_tokens = 0;
        for (int t = count; t < count + more; t++) add(token(t, 0), t, 0, t == count + more - 1);
        decode();
        llama_get_logits_ith(context, -1);
        return now_ms() - began;
    }

    // What an earlier call left behind `length` is cut off, so that the same contexts are filled only once.
    void fill(int length) {
        if (filled != length) {
            read(length);
            for (int s = 1; s < sequences; s++) llama_memory_seq_cp(memory(), 0, s, -1, -1);
        }
        for (int s = 0; s < sequences; s++) llama_memory_seq_rm(memory(), s, length, -1);
        filled = length;
    }

    void steps(int size, int length, int count) {
        open(size, (length + count + 319) / 256 * 256);
        fill(length);
        std::vector<double> times;
        for (int i = 0; i < count; i++) {
            batch.n_tokens = 0;
            for (int s = 0; s < size; s++) add(token(length + i, s), length + i, s, true);
            const double began = now_ms();
            decode();
            llama_get_logits_ith(context, 0);
            times.push_back(now_ms() - began);
        }
        std::sort(times.begin(), times.end());
        printf("%.3f %.3f\n", times[times.size() / 2], times[0]);
    }

    double score(const char* path, int window) {
        std::vector<int32_t> ids(window);
        FILE* file = fopen(path, "rb");
        if (!file) exit(5);
        double sum = 0;
        long said = 0;
        open(1, window + 64);
        while (fread(ids.data(), sizeof ids[0], size_t(window), file) == size_t(window)) {
            llama_memory_clear(memory(), true);
            filled = batch.n_tokens = 0;
            for (int t = 0; t < window; t++) add(ids[t], t, 0, true);
            decode();
            const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
            for (int t = 0; t + 1 < window; t++, said++)
                sum += loss(llama_get_logits_ith(context, t), vocabulary, ids[t + 1]);
        }
        fclose(file);
        return sum / double(said);
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
    Peer peer{llama_model_load_from_file(argv[2], llama_model_default_params()), atoi(argv[3])};
    if (!peer.model) return 1;
    printf("ready\n"), fflush(stdout);
    char line[1024], path[1000];
    while (fgets(line, sizeof line, stdin)) {
        int a, b, c;
        if (sscanf(line, "prefill %d", &a) == 1) printf("%.3f\n", peer.prefill(a));
        if (sscanf(line, "decode %d %d %d", &a, &b, &c) == 3) peer.steps(a, b, c);
        if (sscanf(line, "save %d %999s", &a, path) == 2) printf("%.3f\n", peer.save(a, path));
        if (sscanf(line, "restore %d %d %999s", &a, &b, path) == 3) printf("%.3f\n", peer.restore(a, b, path));
        if (sscanf(line, "score %d %999s", &a, path) == 2) printf("%.6f\n", peer.score(path, a));
        fflush(stdout);
    }
}
