// The arithmetic of flash_attention.cpp, which explains it: one tile of queries against all keys of its head.
//
// No include guard: this file is included once for each instruction set, in a namespace that has defined
//
//   Vector, WIDTH            floats that are computed together, and how many
//   Factor, PER_FACTOR       4 bytes that one multiplication takes: a float, or two numbers in bfloat16
//   Factors                  WIDTH of them
//   ROWS, VECTORS            the sums that fit in registers: ROWS rows of VECTORS vectors
//   load, store, same, load_factors, same_factor, store_factors, multiply_add, larger, power_of_2

constexpr ptrdiff_t LANES = VECTORS * WIDTH;  // the queries of a tile, one in each lane
constexpr ptrdiff_t KEYS = 192;  // whose scores are looked at together; the nearest cache holds them

// What a thread computes in. The packed keys and values of a head serve all of its tiles.
struct Workspace {
    Factor* keys;      // [keys][dim / PER_FACTOR]
    Factor* values;    // [keys / PER_FACTOR][dim]
    Factor* queries;   // [dim / PER_FACTOR][LANES]
    float* scores;     // [KEYS][LANES]
    Factor* weights;   // [KEYS / PER_FACTOR][LANES], in the place of the scores
    float* sums;       // [dim][LANES]: the weighted values so far
    float* largest;    // [LANES]: the largest score so far
    float* kept;       // [LANES]: the part of earlier sums that is left after a larger score came
    float* total;      // [LANES]: the weights so far, added up
    ptrdiff_t floats;  // that all of this takes

    Workspace(const Job& job, float* memory) : floats(0) {
        const auto take = [&](ptrdiff_t count) {
            float* taken = memory + floats;
            floats += (count + 15) / 16 * 16;  // vectors are loaded from whole lines of the cache
            return taken;
        };
        const ptrdiff_t even_keys = job.keys + job.keys % 2;
        keys = reinterpret_cast<Factor*>(take(even_keys * job.dim / PER_FACTOR));
        values = reinterpret_cast<Factor*>(take(even_keys * job.dim / PER_FACTOR));
        queries = reinterpret_cast<Factor*>(take(job.dim * LANES));
        scores = take(KEYS * LANES);
        weights = reinterpret_cast<Factor*>(scores);
        sums = take(job.dim * LANES);
        largest = take(LANES);
        kept = take(LANES);
        total = take(LANES);
    }
};

inline ptrdiff_t floats(const Job& job) { return Workspace(job, nullptr).floats; }

inline void pack(const float* from, ptrdiff_t count, float* to) { std::copy(from, from + count, to); }
inline void pack(const Bfloat16* from, ptrdiff_t count, float* to) {
    for (ptrdiff_t i = 0; i < count; i++) to[i] = as_float(from[i]);
}
inline void pack(const Bfloat16* from, ptrdiff_t count, Pair* to) {
    for (ptrdiff_t i = 0; i < count / 2; i++) to[i] = {from[2 * i], from[2 * i + 1]};
}
inline void pack_pairs(const Bfloat16* first, const Bfloat16* second, ptrdiff_t count, Pair* to) {
    for (ptrdiff_t i = 0; i < count; i++) to[i] = {first[i], second[i]};
}
inline void pack_alone(const Bfloat16* first, ptrdiff_t count, Pair* to) {
    for (ptrdiff_t i = 0; i < count; i++) to[i] = {first[i], Bfloat16{0}};
}

// Pairs are of neighbours along what is summed over: for scores the numbers of one key, for the weighted
// values those of two keys.
template <class Number>
void pack_head(const Job& job, const Number* key, const Number* value, const Workspace& space) {
    for (ptrdiff_t i = 0; i < job.keys; i++, key += job.key.token)
        pack(key, job.dim, space.keys + i * job.dim / PER_FACTOR);
    for (ptrdiff_t i = 0; i < job.keys; i += PER_FACTOR, value += PER_FACTOR * job.value.token) {
        Factor* to = space.values + i / PER_FACTOR * job.dim;
        if constexpr (PER_FACTOR == 1)
            pack(value, job.dim, to);
        else if (i + 1 < job.keys)
            pack_pairs(value, value + job.value.token, job.dim, to);
        else
            pack_alone(value, job.dim, to);
    }
}

// [rows][columns] -> [columns][rows]
template <class Number>
inline void transpose(const Number* from, ptrdiff_t rows, ptrdiff_t columns, Number* to) {
    for (ptrdiff_t column = 0; column < columns; column++)
        for (ptrdiff_t row = 0; row < rows; row++) *to++ = from[row * columns + column];
}

// out[row][lane] = sum over steps of a[row][step] * b[step][lane]: the loop where the time goes. A factor of
// `a` is used for all lanes, a vector of `b` for all rows. With `kept`, out[row][lane] * kept[lane] is added:
// last, because sums of few numbers of like size are the most precise.
template <int rows>
inline void multiply_rows(const Factor* a, ptrdiff_t row_stride, ptrdiff_t step_stride, const Factor* b,
                          ptrdiff_t steps, const float* kept, float* out) {
    Vector sums[rows][VECTORS];
    UNROLL for (int row = 0; row < rows; row++) {
        UNROLL for (int v = 0; v < VECTORS; v++)
            sums[row][v] = same(0);
    }
    for (ptrdiff_t step = 0; step < steps; step++, a += step_stride, b += LANES) {
        Factors column[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++)
            column[v] = load_factors(b + v * WIDTH);
        UNROLL for (int row = 0; row < rows; row++) {
            const Factors factor = same_factor(a + row * row_stride);
            UNROLL for (int v = 0; v < VECTORS; v++)
                sums[row][v] = multiply_add(factor, column[v], sums[row][v]);
        }
    }
    UNROLL for (int row = 0; row < rows; row++) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            float* to = out + row * LANES + v * WIDTH;
            if (kept) sums[row][v] = load(to) * load(kept + v * WIDTH) + sums[row][v];
            store(to, sums[row][v]);
        }
    }
}

inline void multiply(const Factor* a, ptrdiff_t row_stride, ptrdiff_t step_stride, ptrdiff_t rows,
                     const Factor* b, ptrdiff_t steps, const float* kept, float* out) {
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * row_stride, out += ROWS * LANES)
        multiply_rows<ROWS>(a, row_stride, step_stride, b, steps, kept, out);
    static_assert(ROWS <= 6, "more cases are needed below");
    switch (rows) {
        case 5: return multiply_rows<5>(a, row_stride, step_stride, b, steps, kept, out);
        case 4: return multiply_rows<4>(a, row_stride, step_stride, b, steps, kept, out);
        case 3: return multiply_rows<3>(a, row_stride, step_stride, b, steps, kept, out);
        case 2: return multiply_rows<2>(a, row_stride, step_stride, b, steps, kept, out);
        case 1: return multiply_rows<1>(a, row_stride, step_stride, b, steps, kept, out);
        default: return;
    }
}

// Scores become weights relative to the largest score so far. Where that has grown, only a part of what was
// summed up before is kept. `keys` is a multiple of PER_FACTOR.
inline void weigh(const Workspace& space, ptrdiff_t keys, float scale) {
    Vector top[VECTORS], total[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++)
        top[v] = load(space.scores + v * WIDTH);
    for (ptrdiff_t key = 1; key < keys; key++) {
        UNROLL for (int v = 0; v < VECTORS; v++)
            top[v] = larger(top[v], load(space.scores + key * LANES + v * WIDTH));
    }
    UNROLL for (int v = 0; v < VECTORS; v++) {
        const Vector before = load(space.largest + v * WIDTH);
        top[v] = larger(before, top[v]);
        store(space.kept + v * WIDTH, power_of_2((before - top[v]) * same(scale)));
        store(space.largest + v * WIDTH, top[v]);
        total[v] = same(0);
    }
    for (ptrdiff_t key = 0; key < keys; key += PER_FACTOR) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            Vector weights[PER_FACTOR];
            UNROLL for (int i = 0; i < PER_FACTOR; i++) {
                const Vector score = load(space.scores + (key + i) * LANES + v * WIDTH);
                weights[i] = power_of_2((score - top[v]) * same(scale));
                total[v] = total[v] + weights[i];
            }
            store_factors(space.weights + key / PER_FACTOR * LANES + v * WIDTH, weights);
        }
    }
    UNROLL for (int v = 0; v < VECTORS; v++) {
        float* sum = space.total + v * WIDTH;
        store(sum, load(sum) * load(space.kept + v * WIDTH) + total[v]);
    }
}

// `count` queries from `query` on, against all keys. A tile that is not full repeats its last query.
template <class Number>
void attend_tile(const Job& job, const Number* query, ptrdiff_t count, Number* out, const Workspace& space) {
    const ptrdiff_t dim = job.dim, steps = dim / PER_FACTOR;
    constexpr float infinity = std::numeric_limits<float>::infinity();

    Factor* rows = reinterpret_cast<Factor*>(space.sums);
    for (ptrdiff_t i = 0; i < LANES; i++)
        pack(query + std::min(i, count - 1) * job.query.token, dim, rows + i * steps);
    transpose(rows, LANES, steps, space.queries);

    std::fill_n(space.sums, dim * LANES, 0.0f);
    std::fill_n(space.total, LANES, 0.0f);
    std::fill_n(space.largest, LANES, -infinity);
    for (ptrdiff_t first = 0; first < job.keys; first += KEYS) {
        ptrdiff_t keys = std::min(KEYS, job.keys - first);
        multiply(space.keys + first * steps, steps, 1, keys, space.queries, steps, nullptr, space.scores);
        if (keys % PER_FACTOR) {  // nobody looks at the second half of the last pair
            std::fill_n(space.scores + keys * LANES, LANES, -infinity);
            keys++;
        }
        weigh(space, keys, job.scale);
        multiply(space.values + first / PER_FACTOR * dim, 1, dim, dim, space.weights, keys / PER_FACTOR,
                 space.kept, space.sums);
    }

    for (ptrdiff_t i = 0; i < LANES; i++) space.total[i] = 1 / space.total[i];
    for (ptrdiff_t row = 0; row < dim; row++)
        for (ptrdiff_t i = 0; i < LANES; i++) space.sums[row * LANES + i] *= space.total[i];
    float* results = reinterpret_cast<float*>(space.queries);
    transpose(space.sums, dim, LANES, results);
    for (ptrdiff_t i = 0; i < count; i++, results += dim, out += job.out.token)
        for (ptrdiff_t j = 0; j < dim; j++) set(out[j], results[j]);
}

// What one thread does of a job: it takes stretches of tiles until none is left.
template <class Number>
void attend(const Job& job, std::atomic<ptrdiff_t>& next_stretch, float* memory) {
    const Workspace space(job, memory);
    const ptrdiff_t per_head = (job.queries + job.stretch - 1) / job.stretch;
    const auto start = [&](const void* numbers, const Strides& strides, ptrdiff_t head) {
        return static_cast<const Number*>(numbers) + head / job.heads * strides.batch +
               head % job.heads * strides.head;
    };
    ptrdiff_t packed = -1, stretch;
    while ((stretch = next_stretch++) < job.batch * job.heads * per_head) {
        const ptrdiff_t head = stretch / per_head, first = stretch % per_head * job.stretch;
        if (head != packed)
            pack_head(job, start(job.key.numbers, job.key, head), start(job.value.numbers, job.value, head),
                      space);
        packed = head;
        const Number* query = start(job.query.numbers, job.query, head);
        Number* out = const_cast<Number*>(start(job.out.numbers, job.out, head));
        for (ptrdiff_t i = first; i < std::min(first + job.stretch, job.queries); i += LANES)
            attend_tile(job, query + i * job.query.token, std::min(LANES, job.queries - i),
                        out + i * job.out.token, space);
    }
}
