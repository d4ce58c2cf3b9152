// Attention on a CPU: each query looks at all keys of its head and returns the mean of their values, weighted
// by the exponential of how well they match ("softmax").
//
// Written down plainly, that makes a matrix of queries x keys in memory, and moving it takes longer than
// computing it. Flash attention (Dao et al., 2022) never has that matrix. It takes a tile of queries and goes
// through the keys in blocks. For each block it computes the scores, which are few enough to stay in the
// nearest cache, turns them into weights and adds up the weighted values. Weights are relative to the largest
// score of the query so far, because they would overflow otherwise; when a block has a larger score, the sums so
// far are scaled down to match. At the end the sum of the values is divided by the sum of the weights.
//
// Here each lane of a vector register is a query of its own. So scores, weights and results are held with the
// queries side by side ([key][query], [dim][query]): maxima and sums need no traffic between lanes, and both
// products are the same loop, "one factor times a vector of queries" (multiply_rows in
// flash_attention_tile.h). Keys and values are used as they come, a row for each key, so heads of any size
// waste no lanes.
//
// The file is built without torch: Python hands over addresses, sizes and strides (attention.py does,
// and checks them). It asks for Python's limited API, so one build serves all versions of Python.

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

// Compilers that can be allowed other instructions for a part of a file. (MSVC gets the portable level.)
#if defined(__x86_64__) && (defined(__clang__) || defined(__GNUC__))
#define HAS_X86_LEVELS
#include <immintrin.h>
#endif
#ifndef _WIN32
#include <dlfcn.h>
#include <pthread.h>
#endif

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL PRAGMA(clang loop unroll(full))
#define ALLOW(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_ALLOW PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // what its own headers do with undefined vectors
#define UNROLL PRAGMA(GCC unroll 8)
#define ALLOW(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_ALLOW PRAGMA(GCC pop_options)
#else
#define UNROLL
#endif

namespace {

struct Bfloat16 {
    uint16_t bits;
};
struct alignas(4) Pair {
    Bfloat16 first, second;
};

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "only the type changes");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float as_float(Bfloat16 number) { return same_bits<float>(uint32_t{number.bits} << 16); }

inline void set(float& to, float number) { to = number; }
inline void set(Bfloat16& to, float number) {  // rounded to the nearest, halves to even
    const uint32_t bits = same_bits<uint32_t>(number);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    to.bits = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Where numbers of a (batch, heads, tokens, dim) tensor are; neighbours along dim are neighbours in memory.
struct Strides {
    const void* numbers;
    ptrdiff_t batch, head, token;
};

struct Job {
    ptrdiff_t batch, heads, queries, keys, dim;
    Strides query, key, value, out;
    float scale;        // of the scores, as exponents of 2
    ptrdiff_t stretch;  // how many queries a thread takes at a time
};

// How one set of instructions computes attention over one type of number.
struct Kernel {
    void (*attend)(const Job&, std::atomic<ptrdiff_t>& next_stretch, float* memory);
    ptrdiff_t (*floats)(const Job&);  // of memory, for each thread
    ptrdiff_t lanes;
};
#define KERNEL(level, Number) \
    Kernel { level::attend<Number>, level::floats, level::LANES }

// 2^x for x from 0 to 1 as polynomials, highest power first, fitted for the least relative error: 1e-7, and
// 7e-5 where the result is rounded to bfloat16 anyway.
constexpr float POWER_OF_2[] = {0.00187757669f, 0.00898933969f, 0.0558263175f,
                                0.240153611f,   0.693153083f,   0.99999994f};
[[maybe_unused]] constexpr float ROUGH_POWER_OF_2[] = {0.0780245215f, 0.226067156f, 0.695833564f,
                                                       0.999925196f};

namespace portable {

#if defined(__clang__) || defined(__GNUC__)
using Vector = float __attribute__((vector_size(16)));
using Bits = int32_t __attribute__((vector_size(16)));
#else
using Vector = float;
using Bits = int32_t;
#endif
constexpr int WIDTH = sizeof(Vector) / sizeof(float), ROWS = 6, VECTORS = 2;
using Factor = float;
using Factors = Vector;
constexpr int PER_FACTOR = 1;

inline Vector load(const float* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof(vector));
    return vector;
}
inline void store(float* to, Vector vector) { std::memcpy(to, &vector, sizeof(vector)); }
inline Vector same(float number) { return Vector{} + number; }
inline Factors load_factors(const Factor* from) { return load(from); }
inline Factors same_factor(const Factor* from) { return same(*from); }
inline void store_factors(Factor* to, const Vector* weights) { store(to, *weights); }
inline Vector multiply_add(Factors a, Factors b, Vector sum) { return a * b + sum; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector power_of_2(Vector x) {
    x = larger(same(-126), x);  // less has no normal float; in this order NaN stays NaN
    // After adding 1.5 * 2^23 the last bits are those of the nearest integer: here of that below x, and of the
    // 127 that a float adds to its exponent.
    const Vector far = same(12582912 + 127), shifted = x - same(0.5f) + far, rest = x - (shifted - far);
    Vector power = same(POWER_OF_2[0]);
    UNROLL for (size_t i = 1; i < std::size(POWER_OF_2); i++)
        power = power * rest + same(POWER_OF_2[i]);
    return power * same_bits<Vector>(same_bits<Bits>(shifted) << 23);
}

#include "flash_attention_tile.h"

}  // namespace portable

#ifdef HAS_X86_LEVELS

ALLOW("avx2,fma")
namespace avx2 {

using Vector = __m256;
constexpr int WIDTH = 8, ROWS = 6, VECTORS = 2;
using Factor = float;
using Factors = Vector;
constexpr int PER_FACTOR = 1;

inline Vector load(const float* from) { return _mm256_load_ps(from); }
inline void store(float* to, Vector vector) { _mm256_store_ps(to, vector); }
inline Vector same(float number) { return _mm256_set1_ps(number); }
inline Factors load_factors(const Factor* from) { return load(from); }
inline Factors same_factor(const Factor* from) { return same(*from); }
inline void store_factors(Factor* to, const Vector* weights) { store(to, *weights); }
inline Vector multiply_add(Factors a, Factors b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
inline Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector power_of_2(Vector x) {
    x = larger(same(-126), x);  // less has no normal float; in this order NaN stays NaN
    const Vector below = _mm256_floor_ps(x), rest = x - below;
    Vector power = same(POWER_OF_2[0]);
    UNROLL for (size_t i = 1; i < std::size(POWER_OF_2); i++)
        power = power * rest + same(POWER_OF_2[i]);
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(below), _mm256_set1_epi32(127));
    return power * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

#include "flash_attention_tile.h"

}  // namespace avx2
END_ALLOW

ALLOW("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace avx512 {

using Vector = __m512;
constexpr int WIDTH = 16, ROWS = 6, VECTORS = 4;
using Factor = float;
using Factors = Vector;
constexpr int PER_FACTOR = 1;

inline Vector load(const float* from) { return _mm512_load_ps(from); }
inline void store(float* to, Vector vector) { _mm512_store_ps(to, vector); }
inline Vector same(float number) { return _mm512_set1_ps(number); }
inline Factors load_factors(const Factor* from) { return load(from); }
inline Factors same_factor(const Factor* from) { return same(*from); }
inline void store_factors(Factor* to, const Vector* weights) { store(to, *weights); }
inline Vector multiply_add(Factors a, Factors b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
inline Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector power_of_2(Vector x) {
    const Vector rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vector power = same(POWER_OF_2[0]);
    UNROLL for (size_t i = 1; i < std::size(POWER_OF_2); i++)
        power = power * rest + same(POWER_OF_2[i]);
    return _mm512_scalef_ps(power, x);
}

#include "flash_attention_tile.h"

}  // namespace avx512
END_ALLOW

ALLOW("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace avx512bf16 {

using Vector = __m512;
constexpr int WIDTH = 16, ROWS = 6, VECTORS = 4;
using Factor = Pair;
using Factors = __m512i;
constexpr int PER_FACTOR = 2;

inline Vector load(const float* from) { return _mm512_load_ps(from); }
inline void store(float* to, Vector vector) { _mm512_store_ps(to, vector); }
inline Vector same(float number) { return _mm512_set1_ps(number); }
inline Factors load_factors(const Factor* from) { return _mm512_load_si512(from); }
inline Factors same_factor(const Factor* from) { return _mm512_set1_epi32(same_bits<int32_t>(*from)); }
inline void store_factors(Factor* to, const Vector* weights) {
    // The first 16 numbers are of weights[0]; the lanes of both are to alternate.
    alignas(64) static constexpr uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(weights[1], weights[0]);
    _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(order), both));
}
inline Vector multiply_add(Factors a, Factors b, Vector sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
inline Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector power_of_2(Vector x) {
    const Vector rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vector power = same(ROUGH_POWER_OF_2[0]);
    UNROLL for (size_t i = 1; i < std::size(ROUGH_POWER_OF_2); i++)
        power = power * rest + same(ROUGH_POWER_OF_2[i]);
    return _mm512_scalef_ps(power, x);
}

#include "flash_attention_tile.h"

}  // namespace avx512bf16
END_ALLOW

#endif  // HAS_X86_LEVELS

struct Level {
    const char* name;
    Kernel for_float32, for_bfloat16;
};

// Those that this processor can run, the best first.
const std::vector<Level>& levels() {
    static const std::vector<Level> there = [] {
        std::vector<Level> found;
#ifdef HAS_X86_LEVELS
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (avx512 && __builtin_cpu_supports("avx512bf16"))
            found.push_back({"avx512bf16", KERNEL(avx512, float), KERNEL(avx512bf16, Bfloat16)});
        if (avx512) found.push_back({"avx512", KERNEL(avx512, float), KERNEL(avx512, Bfloat16)});
        if (avx2) found.push_back({"avx2", KERNEL(avx2, float), KERNEL(avx2, Bfloat16)});
#endif
        found.push_back({"portable", KERNEL(portable, float), KERNEL(portable, Bfloat16)});
        return found;
    }();
    return there;
}

// Runs `work` on several threads, this one among them, and returns when all are done. It may be run on fewer.
//
// torch's own threads are used where they can be had: after an operation of torch they wait in a loop for
// some time, and threads of ours would have to share the cores with them. They are behind GOMP_parallel, an
// entry that compilers call and hence stable, found at run time so that we neither need nor load an OpenMP
// library.
using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<GompParallel> gomp_parallel{nullptr};

void on_threads(int count, void (*work)(void*), void* context) {
    if (count <= 1) return work(context);
    if (const auto parallel = gomp_parallel.load()) return parallel(work, context, count, 0);
    std::vector<std::thread> others;
    others.reserve(count - 1);
    try {
        while (static_cast<int>(others.size()) < count - 1) others.emplace_back(work, context);
    } catch (const std::system_error&) {  // no more threads to be had; those that are there do it all
    }
    work(context);
    for (auto& other : others) other.join();
}

// Memory for all threads at once, so that running out of it is noticed before any of them starts.
class Memory {
  public:
    explicit Memory(size_t floats)
        : floats_(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64}))) {}
    ~Memory() { ::operator delete(floats_, std::align_val_t{64}); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    float* at(size_t index) const { return floats_ + index; }

  private:
    float* floats_;
};

// May throw std::bad_alloc.
void run(Job job, const Kernel& kernel, int threads) {
    const ptrdiff_t tiles = (job.queries + kernel.lanes - 1) / kernel.lanes, heads = job.batch * job.heads;
    threads = static_cast<int>(std::min<ptrdiff_t>(threads, heads * tiles));
    // Small enough that all threads end at about the same time, and large because each packs the head anew.
    job.stretch = kernel.lanes * std::max<ptrdiff_t>(1, std::min(tiles, heads * tiles / (16 * threads)));

    const ptrdiff_t floats = kernel.floats(job);
    const Memory memory(static_cast<size_t>(floats) * threads);
    struct Shared {
        const Job& job;
        const Kernel& kernel;
        const Memory& memory;
        const ptrdiff_t floats;
        std::atomic<ptrdiff_t> next_thread{0}, next_stretch{0};
    } shared{job, kernel, memory, floats};
    on_threads(
        threads,
        [](void* context) {
            Shared& shared = *static_cast<Shared*>(context);
            shared.kernel.attend(shared.job, shared.next_stretch,
                                 shared.memory.at(shared.next_thread++ * shared.floats));
        },
        &shared);
}

const char* fault_of(const Job& job, int level, int threads) {
    constexpr ptrdiff_t most = ptrdiff_t{1} << 40;
    if (level < 0 || level >= static_cast<int>(levels().size()))
        return "there is no such level on this processor";
    if (threads < 1 || threads > 4096) return "threads are 1 to 4096";
    if (job.batch < 1 || job.heads < 1 || job.queries < 1 || job.keys < 1) return "every size is at least 1";
    if (job.dim < 8 || job.dim > 512 || job.dim % 8) return "dim is a multiple of 8 up to 512";
    if (job.batch > most / job.heads || job.queries > most || job.keys > most) return "a size is too large";
    if (!(job.scale > 0) || job.scale > std::numeric_limits<float>::max()) return "the scale is positive";
    for (const Strides* tensor : {&job.query, &job.key, &job.value, &job.out})
        if (tensor->numbers == nullptr) return "an address is 0";
    return nullptr;
}

PyObject* attend(PyObject*, PyObject* arguments) {
    int level, is_bfloat16, threads;
    double scale;
    Job job{};
    unsigned long long addresses[4];
    Strides* tensors[4] = {&job.query, &job.key, &job.value, &job.out};
    if (!PyArg_ParseTuple(arguments, "ipid(nnnnn)(Knnn)(Knnn)(Knnn)(Knnn):attend", &level, &is_bfloat16,
                          &threads, &scale, &job.batch, &job.heads, &job.queries, &job.keys, &job.dim,
                          &addresses[0], &job.query.batch, &job.query.head, &job.query.token, &addresses[1],
                          &job.key.batch, &job.key.head, &job.key.token, &addresses[2], &job.value.batch,
                          &job.value.head, &job.value.token, &addresses[3], &job.out.batch, &job.out.head,
                          &job.out.token))
        return nullptr;
    for (int i = 0; i < 4; i++)
        tensors[i]->numbers = reinterpret_cast<void*>(static_cast<uintptr_t>(addresses[i]));
    job.scale = static_cast<float>(scale * 1.4426950408889634);  // log2(e): weights are powers of 2 here
    if (const char* fault = fault_of(job, level, threads)) {
        PyErr_SetString(PyExc_ValueError, fault);
        return nullptr;
    }
    const Level& chosen = levels()[level];
    bool has_memory = true;
    PyThreadState* state = PyEval_SaveThread();
    try {
        run(job, is_bfloat16 ? chosen.for_bfloat16 : chosen.for_float32, threads);
    } catch (const std::bad_alloc&) {
        has_memory = false;
    }
    PyEval_RestoreThread(state);
    if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyObject* level_names(PyObject*, PyObject*) {
    PyObject* names = PyTuple_New(levels().size());
    for (size_t i = 0; names != nullptr && i < levels().size(); i++) {
        PyObject* name = PyUnicode_FromString(levels()[i].name);
        if (name == nullptr || PyTuple_SetItem(names, i, name) != 0) Py_CLEAR(names);
    }
    return names;
}

PyMethodDef methods[] = {
    {"attend", attend, METH_VARARGS,
     "attend(level, is_bfloat16, threads, scale, (batch, heads, queries, keys, dim), query, key, value, out)"
     "\n\n`level` is an index into levels(). A tensor is (address, stride of batch, of heads, of tokens)."},
    {"levels", level_names, METH_NOARGS, "What this processor can run, the best first."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_flash_attention", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__flash_attention() {
#ifndef _WIN32
    gomp_parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    // In a forked process the threads of OpenMP are gone, but it would wait for them.
    pthread_atfork(nullptr, nullptr, [] { gomp_parallel = nullptr; });
#endif
    return PyModule_Create(&module);
}
