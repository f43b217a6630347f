// What this machine could do at best, for bench/engine.py: `probe THREADS` prints GB/s of cold reads and int8 GMAC/s.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;
constexpr size_t BYTES = size_t(128) << 20;  // beyond the caches, about the size of a small model
static volatile int64_t sink;

// Each thread's own best, so that one that other load held up for a while does not spoil the others' rates.
template <class Work> static double best_rate(int threads, double amount, Work work) {
    std::vector<double> best(size_t(threads), 1e9);
    const auto repeat = [&](int t) {
        for (int i = 0; i < 60; i++) {
            const auto began = Clock::now();
            work(t);
            best[size_t(t)] = std::min(best[size_t(t)], std::chrono::duration<double>(Clock::now() - began).count());
        }
    };
    std::vector<std::thread> running;
    for (int t = 0; t < threads; t++) running.emplace_back(repeat, t);
    for (auto& thread : running) thread.join();
    double rate = 0;
    for (double seconds : best) rate += amount / seconds;
    return rate;
}

static void read(const int64_t* from, size_t count) {
    int64_t sums[32] = {};
    for (size_t i = 0; i < count; i += 32)
        for (int j = 0; j < 32; j++) sums[j] += from[i + j];
    for (int64_t sum : sums) sink = sink + sum;
}

constexpr int ROUNDS = 1 << 18, CHAINS = 12;

// u8 x s8 products summed in int32, operands in registers: the most that any kernel of this kind could reach.
#if defined(__AVX512VNNI__)
constexpr int MACS = 64;
static void multiply() {
    __m512i sums[CHAINS] = {}, a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
    for (int i = 0; i < ROUNDS; i++)
#pragma GCC unroll 12
        for (auto& sum : sums) {
            asm volatile("" : "+v"(sum));  // else the compiler sees that all chains are one
            sum = _mm512_dpbusd_epi32(sum, a, b);
        }
    for (auto& sum : sums) sink = sink + _mm512_reduce_add_epi32(sum);
}
#else
constexpr int MACS = 32;
static void multiply() {
    __m256i sums[CHAINS] = {}, a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < ROUNDS; i++) {
        asm volatile("" : "+x"(a));  // else the product is computed once
#pragma GCC unroll 12
        for (auto& sum : sums) {
            asm volatile("" : "+x"(sum));  // and all chains are one
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    }
    for (auto& sum : sums) sink = sink + _mm256_extract_epi32(sum, 0);
}
#endif

int main(int, char** argv) {
    const int threads = atoi(argv[1]);
    const size_t count = BYTES / sizeof(int64_t) / size_t(threads) / 32 * 32;
    std::vector<int64_t> memory(count * size_t(threads), 1);
    const auto reading = [&](int t) { read(memory.data() + size_t(t) * count, count); };
    printf("%.3f ", best_rate(threads, double(count * sizeof(int64_t)), reading) / 1e9);
    printf("%.3f\n", best_rate(threads, double(ROUNDS) * CHAINS * MACS, [](int) { multiply(); }) / 1e9);
}
