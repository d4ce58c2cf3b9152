// Filling a hole of a picture with patches of the same picture.
//
// The hole starts with a smooth guess. Then two steps take turns. Search: for each patch that reaches into the
// hole, find the patch of the known picture that is most like it. Vote: each pixel of the hole becomes a mean
// of what the patches found have at its place (Wexler et al., 2007). The search is PatchMatch (Barnes et al.,
// 2009): a patch tries the answers of its neighbours, moved by one pixel, and then random places ever nearer to
// its best answer. This is done from coarse to fine: a small version of the picture decides what goes where,
// and each finer one takes over its answers and adds detail.
//
// Pixels have a fourth channel, texture: how much the surroundings vary (Newson et al., 2014). Without it,
// smooth patches would be preferred, as they are never far from anything.
//
// The file needs no other library: Python hands over addresses and sizes (patch_fill.py does, and checks them).
// It asks for Python's limited API, so one build serves all versions of Python.

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

#if defined(__x86_64__) && (defined(__clang__) || defined(__GNUC__))
#define HAS_AVX2_LEVEL
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

namespace {

constexpr int SIDE = 9;            // pixels of a patch's side
constexpr int AREA = SIDE * SIDE;
constexpr int CHANNELS = 4;        // red, green, blue, texture
constexpr int COARSEST = 5;        // width of the hole at the coarsest level, in patches
constexpr int LEAST = 3 * SIDE;    // shorter side of the coarsest level
constexpr int ROUNDS_COARSEST = 20, ROUNDS_BETWEEN = 12, ROUNDS_FINEST = 4;
constexpr int LARGE = 400000;      // patches of a level from which it gets fewer rounds
constexpr int TEXTURE_REACH = 4;   // pixels
constexpr float TEXTURE_WEIGHT = 6.0f;
constexpr float TRUST = 1.5f;      // how fast patches lose weight with the distance to the hole's edge
constexpr float SHARPER = 0.4f; // of the usual tolerance in votes, at the finest level
constexpr float KEEP_COLOURS = 0.03f;  // against keeping the steps between neighbours, in the finish
constexpr float SHIFT = 24.0f;         // levels by which fill and photo may differ at the hole's edge
constexpr int SEAM_SWEEPS = 60;
constexpr float NEARNESS = 120.0f; // what a source at the other end of the picture costs, as squared difference
constexpr int NOT_SEARCHED = -1;
constexpr int GUESSED = 1000 * AREA;  // difference of a patch without an answer from the coarser level

using Progress = std::function<bool(int, int)>;  // given what is done of how much; false stops

// A random number generator that gives the same numbers on every machine.
uint32_t scrambled(uint32_t number) {
    number ^= number >> 16;
    number *= 0x7feb352du;
    number ^= number >> 15;
    number *= 0x846ca68bu;
    return number ^ number >> 16;
}

class Random {
  public:
    explicit Random(uint32_t seed) : state(scrambled(seed) | 1u) {}
    int between(int low, int high) {  // both included
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return low + static_cast<int>((static_cast<uint64_t>(state) * (high - low + 1)) >> 32);
    }

  private:
    uint32_t state;
};

// The picture at one size. A place of a hole has some colour, but not one that may be copied.
struct Level {
    int width, height;
    std::vector<uint8_t> pixels;
    std::vector<uint8_t> hole, source;  // source: may be copied

    Level(int width, int height)
        : width(width),
          height(height),
          pixels(size_t(width) * height * CHANNELS),
          hole(size_t(width) * height),
          source(size_t(width) * height) {}
    size_t index(int x, int y) const { return size_t(y) * width + x; }
    const uint8_t* at(int x, int y) const { return &pixels[index(x, y) * CHANNELS]; }
    uint8_t* at(int x, int y) { return &pixels[index(x, y) * CHANNELS]; }
};

// A patch is named by its upper left corner. `corners_across` of them fit into a row of the level.
struct Patches {
    int across, down;
    std::vector<uint8_t> reaches_hole, is_source;
    std::vector<int> targets, sources;  // indices of those patches
    std::vector<float> trust;           // of each patch

    int x(int index) const { return index % across; }
    int y(int index) const { return index / across; }
    int index(int x, int y) const { return y * across + x; }
};

// For each patch that reaches into the hole: the patch it is most like, and how much they differ.
struct Field {
    int across = 0, down = 0;
    std::vector<int> found, difference;
};

INLINE int difference_of(const uint8_t* first, const uint8_t* second, size_t row, int limit) {
    int total = 0;
    for (int y = 0; y < SIDE && total < limit; y++, first += row, second += row)
        for (int i = 0; i < SIDE * CHANNELS; i++) {
            int apart = int(first[i]) - int(second[i]);
            total += apart * apart;
        }
    return total;
}

// Return the squared difference of two patches, or something not below `limit` once it reaches that.
using Difference = int (*)(const uint8_t*, const uint8_t*, size_t, int);
int plain_difference(const uint8_t* first, const uint8_t* second, size_t row, int limit) {
    return difference_of(first, second, row, limit);
}
#ifdef HAS_AVX2_LEVEL
__attribute__((target("avx2"))) int avx2_difference(const uint8_t* first, const uint8_t* second, size_t row,
                                                    int limit) {
    return difference_of(first, second, row, limit);
}
#endif
Difference fastest_difference() {
#ifdef HAS_AVX2_LEVEL
    if (__builtin_cpu_supports("avx2")) return avx2_difference;
#endif
    return plain_difference;
}
const Difference difference = fastest_difference();

std::vector<int> summed(const std::vector<uint8_t>& values, int width, int height) {
    std::vector<int> sums(size_t(width + 1) * (height + 1));
    for (int y = 0; y < height; y++)
        for (int x = 0, line = 0; x < width; x++) {
            line += values[size_t(y) * width + x];
            sums[size_t(y + 1) * (width + 1) + x + 1] = sums[size_t(y) * (width + 1) + x + 1] + line;
        }
    return sums;
}

int sum_in_patch(const std::vector<int>& sums, int width, int x, int y) {
    const int* top = &sums[size_t(y) * (width + 1) + x];
    const int* bottom = top + size_t(SIDE) * (width + 1);
    return bottom[SIDE] - bottom[0] - top[SIDE] + top[0];
}

// Return for each pixel how far it is from the known picture.
std::vector<float> depths(const Level& level) {
    const float beyond = 1e9f, diagonal = 1.4142135f;
    const int width = level.width, height = level.height;
    std::vector<float> depth(level.hole.size());
    for (size_t i = 0; i < depth.size(); i++) depth[i] = level.hole[i] ? beyond : 0;
    auto sweep = [&](int x, int y, int back) {
        float& own = depth[level.index(x, y)];
        if (own == 0) return;
        auto ask = [&](int dx, int dy, float step) {
            int there = x + dx, line = y + dy;
            if (there >= 0 && line >= 0 && there < width && line < height)
                own = std::min(own, depth[level.index(there, line)] + step);
        };
        ask(back, 0, 1);
        ask(0, back, 1);
        ask(-1, back, diagonal);
        ask(1, back, diagonal);
    };
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) sweep(x, y, -1);
    for (int y = height - 1; y >= 0; y--)
        for (int x = width - 1; x >= 0; x--) sweep(x, y, 1);
    return depth;
}

Patches patches_of(const Level& level) {
    Patches patches;
    patches.across = level.width - SIDE + 1;
    patches.down = level.height - SIDE + 1;
    const size_t count = size_t(patches.across) * patches.down;
    patches.reaches_hole.assign(count, 0);
    patches.is_source.assign(count, 0);
    patches.trust.assign(count, 0);
    std::vector<uint8_t> forbidden(level.source.size());
    for (size_t i = 0; i < forbidden.size(); i++) forbidden[i] = !level.source[i];
    const auto holes = summed(level.hole, level.width, level.height);
    const auto barred = summed(forbidden, level.width, level.height);
    const auto depth = depths(level);
    for (int y = 0; y < patches.down; y++)
        for (int x = 0; x < patches.across; x++) {
            int here = patches.index(x, y);
            if (sum_in_patch(holes, level.width, x, y)) {
                patches.reaches_hole[here] = 1;
                patches.targets.push_back(here);
                patches.trust[here] = std::pow(TRUST, -depth[level.index(x + SIDE / 2, y + SIDE / 2)]);
            }
            if (!sum_in_patch(barred, level.width, x, y)) {
                patches.is_source[here] = 1;
                patches.sources.push_back(here);
            }
        }
    return patches;
}

// Return the level at half the size. A pixel is known if at least half of what it covers is.
Level halved(const Level& level) {
    Level smaller((level.width + 1) / 2, (level.height + 1) / 2);
    for (int y = 0; y < smaller.height; y++)
        for (int x = 0; x < smaller.width; x++) {
            int sum[CHANNELS] = {}, covered = 0, known = 0, usable = 0;
            for (int line = 2 * y; line < std::min(2 * y + 2, level.height); line++)
                for (int column = 2 * x; column < std::min(2 * x + 2, level.width); column++) {
                    covered++;
                    if (level.hole[level.index(column, line)]) continue;
                    known++;
                    usable += level.source[level.index(column, line)];
                    for (int c = 0; c < CHANNELS; c++) sum[c] += level.at(column, line)[c];
                }
            const size_t here = smaller.index(x, y);
            smaller.hole[here] = 2 * known < covered;
            smaller.source[here] = !smaller.hole[here] && usable == known;
            for (int c = 0; known && c < CHANNELS; c++) smaller.at(x, y)[c] = (sum[c] + known / 2) / known;
        }
    return smaller;
}

// Fill the texture channel: the mean gradient of the known surroundings.
void add_texture(Level& level) {
    const int width = level.width, height = level.height;
    std::vector<double> slope(size_t(width) * height), count(slope.size());
    for (int y = 0; y + 1 < height; y++)
        for (int x = 0; x + 1 < width; x++) {
            const size_t here = level.index(x, y);
            if (level.hole[here] || level.hole[here + 1] || level.hole[here + width]) continue;
            const uint8_t *own = level.at(x, y), *right = level.at(x + 1, y), *below = level.at(x, y + 1);
            for (int c = 0; c < 3; c++)
                slope[here] += (std::abs(own[c] - right[c]) + std::abs(own[c] - below[c])) / 3.0;
            count[here] = 1;
        }
    auto spread = [&](std::vector<double>& values) {
        auto along = [&](int lines, int length, size_t line_step, size_t step) {
            std::vector<double> sums(length + 1);
            for (int line = 0; line < lines; line++) {
                double* first = &values[line * line_step];
                for (int i = 0; i < length; i++) sums[i + 1] = sums[i] + first[i * step];
                for (int i = 0; i < length; i++)
                    first[i * step] = sums[std::min(length, i + TEXTURE_REACH + 1)] -
                                      sums[std::max(0, i - TEXTURE_REACH)];
            }
        };
        along(height, width, width, 1);
        along(width, height, 1, width);
    };
    spread(slope);
    spread(count);
    for (size_t i = 0; i < slope.size(); i++)
        level.pixels[i * CHANNELS + 3] =
            uint8_t(std::min(255.0, TEXTURE_WEIGHT * slope[i] / std::max(1.0, std::round(count[i]))));
}

// Start a small level: each pixel of the hole becomes the mean of its neighbours.
void smooth_start(Level& level) {
    const int width = level.width, height = level.height;
    double mean[CHANNELS] = {}, known = 0;
    for (size_t i = 0; i < level.hole.size(); i++)
        if (!level.hole[i]) {
            known++;
            for (int c = 0; c < CHANNELS; c++) mean[c] += level.pixels[i * CHANNELS + c];
        }
    std::vector<float> values(level.pixels.begin(), level.pixels.end());
    std::vector<size_t> inside;
    for (size_t i = 0; i < level.hole.size(); i++)
        if (level.hole[i]) {
            inside.push_back(i);
            for (int c = 0; c < CHANNELS; c++) values[i * CHANNELS + c] = float(mean[c] / std::max(known, 1.0));
        }
    const int sweeps = std::min(400, 4 * (width + height));
    for (int sweep = 0; sweep < sweeps; sweep++)
        for (size_t i : inside) {
            const int x = int(i % width), y = int(i / width);
            for (int c = 0; c < CHANNELS; c++) {
                float sum = 0;
                int count = 0;
                auto add = [&](bool exists, size_t where) {
                    if (exists) sum += values[where * CHANNELS + c], count++;
                };
                add(x > 0, i - 1);
                add(x + 1 < width, i + 1);
                add(y > 0, i - width);
                add(y + 1 < height, i + width);
                float& own = values[i * CHANNELS + c];
                own += 1.5f * (sum / count - own);  // more than the whole way: it settles sooner
            }
        }
    for (size_t i : inside)
        for (int c = 0; c < CHANNELS; c++)
            level.pixels[i * CHANNELS + c] =
                uint8_t(std::lround(std::clamp(values[i * CHANNELS + c], 0.0f, 255.0f)));
}

class Filling {
  public:
    Filling(Level& level, uint32_t seed, float tolerance)
        : level(level), patches(patches_of(level)), seed(seed), tolerance(tolerance) {
        field.across = patches.across;
        field.down = patches.down;
        field.found.assign(size_t(patches.across) * patches.down, 0);
        field.difference.assign(field.found.size(), NOT_SEARCHED);
    }
    bool has_sources() const { return !patches.sources.empty(); }
    int count() const { return int(patches.targets.size()); }

    void start_anywhere() {
        for (int target : patches.targets) field.found[target] = any_source(target);
    }
    // Take over the answers of the coarser level, and the pixels that this level has there.
    void start_from(const Field& coarser) {
        for (int target : patches.targets) {
            const int x = patches.x(target), y = patches.y(target);
            const int column = std::min(x / 2, coarser.across - 1), line = std::min(y / 2, coarser.down - 1);
            const int parent = line * coarser.across + column;
            int found = -1;
            if (coarser.difference[parent] != NOT_SEARCHED) {
                const int there = coarser.found[parent] % coarser.across * 2 + x - 2 * column;
                const int below = coarser.found[parent] / coarser.across * 2 + y - 2 * line;
                if (is_source(there, below)) found = patches.index(there, below);
            }
            field.found[target] = found < 0 ? any_source(target) : found;
            field.difference[target] = found < 0 ? GUESSED : AREA;
        }
        vote();
    }
    void compare() {
        for (int target : patches.targets)
            field.difference[target] = cost(target, field.found[target], INT32_MAX);
    }
    void search(int pass) {
        const bool backwards = pass % 2;
        const int step = backwards ? 1 : -1;
        const int widest = std::max(patches.across, patches.down);
        for (int i = 0; i < count(); i++) {
            const int target = patches.targets[backwards ? count() - 1 - i : i];
            const int x = patches.x(target), y = patches.y(target);
            int best = field.found[target], least = field.difference[target];
            auto ask = [&](int there, int line) {
                if (!is_source(there, line)) return;
                const int candidate = patches.index(there, line);
                if (candidate == best) return;
                const int apart = cost(target, candidate, least);
                if (apart < least) least = apart, best = candidate;
            };
            if (reaches_hole(x + step, y)) {
                const int answer = field.found[target + step];
                ask(patches.x(answer) - step, patches.y(answer));
            }
            if (reaches_hole(x, y + step)) {
                const int answer = field.found[target + step * patches.across];
                ask(patches.x(answer), patches.y(answer) - step);
            }
            Random random(seed ^ scrambled(uint32_t(target) * 31u + pass));
            for (int reach = widest; reach >= 1; reach /= 2) {
                const int column = patches.x(best), line = patches.y(best);
                const int there = random.between(std::max(0, column - reach),
                                                 std::min(patches.across - 1, column + reach));
                ask(there, random.between(std::max(0, line - reach), std::min(patches.down - 1, line + reach)));
            }
            field.found[target] = best;
            field.difference[target] = least;
        }
    }
    // Give each pixel of the hole the mean of its patches. Return by how much they changed in the mean.
    double vote() {
        std::vector<uint8_t> voted = level.pixels;
        double changed = 0, pixels = 0;
        for (int y = 0; y < level.height; y++)
            for (int x = 0; x < level.width; x++) {
                if (!level.hole[level.index(x, y)]) continue;
                Votes votes;
                if (!count_votes<false>(x, y, votes)) continue;
                uint8_t* to = &voted[level.index(x, y) * CHANNELS];
                for (int c = 0; c < CHANNELS; c++) {
                    to[c] = uint8_t(votes.colour[c] + 0.5f);
                    changed += std::abs(int(to[c]) - int(level.at(x, y)[c]));
                }
                pixels++;
            }
        level.pixels.swap(voted);
        return pixels ? changed / pixels / CHANNELS : 0;
    }
    // Make the steps between neighbours those that the patches have, and keep the colours as far as that allows
    // ("screened Poisson"). Where patches from different places meet, and at the hole's edge, no seam is left.
    void smooth_seams() {
        const size_t step[2] = {1, size_t(level.width)};
        std::vector<float> wanted[2], now(level.pixels.begin(), level.pixels.end());
        for (auto& steps : wanted) steps.assign(now.size(), 0);
        std::vector<float> belief[2] = {std::vector<float>(level.hole.size()),
                                        std::vector<float>(level.hole.size())};
        const std::vector<float> agreed = agreement();
        for (int y = 0; y < level.height; y++)
            for (int x = 0; x < level.width; x++) {
                const size_t here = level.index(x, y);
                const bool right = x + 1 < level.width && (level.hole[here] || level.hole[here + 1]);
                const bool below = y + 1 < level.height && (level.hole[here] || level.hole[here + step[1]]);
                Votes votes;
                if (!(right || below) || !count_votes<true>(x, y, votes)) continue;
                for (int axis = 0; axis < 2; axis++) {
                    if (!(axis == 0 ? right : below) || !(votes.step_weight[axis] > 0)) continue;
                    belief[axis][here] = std::min(agreed[here], agreed[here + step[axis]]);
                    for (int c = 0; c < 3; c++) wanted[axis][here * CHANNELS + c] = votes.step[axis][c];
                }
            }
        const std::vector<float> voted = now;
        for (int sweep = 0; sweep < SEAM_SWEEPS; sweep++)
            for (size_t here = 0; here < level.hole.size(); here++) {
                if (!level.hole[here]) continue;
                for (int c = 0; c < 3; c++) {
                    const size_t at = here * CHANNELS + c;
                    float sum = KEEP_COLOURS * voted[at], weight = KEEP_COLOURS;
                    for (int axis = 0; axis < 2; axis++) {
                        const size_t away = step[axis] * CHANNELS;
                        if (const float share = belief[axis][here]) {
                            sum += share * (now[at + away] - wanted[axis][at]);
                            weight += share;
                        }
                        if (here < step[axis]) continue;
                        if (const float share = belief[axis][here - step[axis]]) {
                            sum += share * (now[at - away] + wanted[axis][at - away]);
                            weight += share;
                        }
                    }
                    now[at] += 1.6f * (sum / weight - now[at]);  // more than the whole way: it settles sooner
                }
            }
        for (size_t i = 0; i < now.size(); i++)
            if (level.hole[i / CHANNELS]) level.pixels[i] = uint8_t(std::clamp(now[i] + 0.5f, 0.0f, 255.0f));
    }

    Field field;

  private:
    bool is_source(int x, int y) const {
        return x >= 0 && y >= 0 && x < patches.across && y < patches.down &&
               patches.is_source[patches.index(x, y)];
    }
    bool reaches_hole(int x, int y) const {
        return x >= 0 && y >= 0 && x < patches.across && y < patches.down &&
               patches.reaches_hole[patches.index(x, y)];
    }
    int any_source(int target) const {
        Random random(seed + uint32_t(target) * 17u);
        return patches.sources[random.between(0, int(patches.sources.size()) - 1)];
    }
    int cost(int target, int source, int limit) const {
        const int x = patches.x(target), y = patches.y(target);
        const int there = patches.x(source), line = patches.y(source);
        const float across = float(there - x), down = float(line - y);  // whose squares may not fit an int
        const float away = std::sqrt(across * across + down * down);
        const int distance = int(NEARNESS * AREA * away / (level.width + level.height));
        if (distance >= limit) return distance;
        return distance + difference(level.at(x, y), level.at(there, line), size_t(level.width) * CHANNELS,
                                     limit - distance);
    }
    // Return how far patches and photo agree on each pixel, from 0 to 1; 1 in the hole. Where they do not, a thing
    // ends at the hole, and its colour must not run into the fill.
    std::vector<float> agreement() const {
        std::vector<float> agreed(level.hole.size(), 1);
        for (int y = 0; y < level.height; y++)
            for (int x = 0; x < level.width; x++) {
                const size_t here = level.index(x, y), row = size_t(level.width);
                const bool at_hole = (x > 0 && level.hole[here - 1]) || (y > 0 && level.hole[here - row]) ||
                                     (x + 1 < level.width && level.hole[here + 1]) ||
                                     (y + 1 < level.height && level.hole[here + row]);
                Votes votes;
                if (level.hole[here] || !at_hole || !count_votes<false>(x, y, votes)) continue;
                float apart = 0;
                for (int c = 0; c < 3; c++) {
                    const float difference = votes.colour[c] - level.at(x, y)[c];
                    apart += difference * difference / 3;
                }
                agreed[here] = std::exp(-apart / (SHIFT * SHIFT));
            }
        return agreed;
    }
    // What the patches that cover a pixel say of it: its colour, and the step to its right and lower neighbour.
    struct Votes {
        float colour[CHANNELS] = {}, step[2][CHANNELS] = {}, step_weight[2] = {};
    };
    // Patches count by how well they fit, relative to the others here, and by how near to the edge they are.
    template <bool WITH_STEPS>
    bool count_votes(int x, int y, Votes& votes) const {
        int covering[AREA], differences[AREA], sorted[AREA], count = 0, least = INT32_MAX;
        for (int top = std::max(0, y - SIDE + 1); top <= std::min(y, patches.down - 1); top++)
            for (int left = std::max(0, x - SIDE + 1); left <= std::min(x, patches.across - 1); left++) {
                const int patch = patches.index(left, top);
                if (!patches.reaches_hole[patch]) continue;
                covering[count] = patch;
                differences[count] = field.difference[patch];
                least = std::min(least, differences[count++]);
            }
        if (!count) return false;
        std::copy(differences, differences + count, sorted);
        std::nth_element(sorted, sorted + count * 3 / 4, sorted + count);
        const float usual = tolerance * float(std::max(sorted[count * 3 / 4], AREA));
        float total = 0;
        for (int i = 0; i < count; i++) {
            const int patch = covering[i], found = field.found[patch];
            const float weight =
                patches.trust[patch] * std::exp(-float(differences[i] - least) / usual) + 1e-12f;
            const int column = x - patches.x(patch), line = y - patches.y(patch);
            const uint8_t* from = level.at(patches.x(found) + column, patches.y(found) + line);
            for (int c = 0; c < CHANNELS; c++) votes.colour[c] += weight * from[c];
            total += weight;
            if (!WITH_STEPS) continue;
            const uint8_t* next[2] = {column + 1 < SIDE ? from + CHANNELS : nullptr,
                                      line + 1 < SIDE ? from + size_t(level.width) * CHANNELS : nullptr};
            for (int axis = 0; axis < 2; axis++) {
                if (!next[axis]) continue;
                for (int c = 0; c < 3; c++) votes.step[axis][c] += weight * (int(next[axis][c]) - int(from[c]));
                votes.step_weight[axis] += weight;
            }
        }
        for (int c = 0; c < CHANNELS; c++) {
            votes.colour[c] /= total;
            for (int axis = 0; WITH_STEPS && axis < 2; axis++)
                if (votes.step_weight[axis] > 0) votes.step[axis][c] /= votes.step_weight[axis];
        }
        return true;
    }

    Level& level;
    const Patches patches;
    const uint32_t seed;
    const float tolerance;  // how much worse than the best a patch may be and still count in a vote
};

// Return the picture at falling sizes, until the hole is a few patches wide.
std::vector<Level> sizes_of(Level finest) {
    const auto depth = depths(finest);
    float width = 0;
    for (float value : depth) width = std::max(width, 2 * std::min(value, float(finest.width + finest.height)));
    std::vector<Level> levels{std::move(finest)};
    while (width > COARSEST * SIDE &&
           std::min(levels.back().width, levels.back().height) >= 2 * LEAST) {
        levels.push_back(halved(levels.back()));
        width /= 2;
    }
    return levels;
}

enum class Outcome { done, stopped, nothing_to_copy };

Outcome fill(Level& picture, uint32_t seed, const Progress& progress) {
    add_texture(picture);
    std::vector<Level> levels = sizes_of(std::move(picture));
    const int coarsest = int(levels.size()) - 1;
    Field field;
    bool started = false;
    for (int number = coarsest; number >= 0; number--) {
        Level& level = levels[number];
        Filling filling(level, scrambled(seed * 977u + number * 131u + 7u), number == 0 ? SHARPER : 1.0f);
        if (!filling.has_sources()) {
            if (number == 0) return Outcome::nothing_to_copy;
            continue;
        }
        if (started) {
            filling.start_from(field);
        } else {
            smooth_start(level);
            filling.start_anywhere();
        }
        filling.compare();
        int rounds = !started ? ROUNDS_COARSEST : number == 0 ? ROUNDS_FINEST : ROUNDS_BETWEEN;
        if (started && filling.count() > LARGE) rounds = 2;
        const double settled = started ? 0.05 : 0.1;  // a mean change of pixels that ends a level
        for (int round = 0, pass = 0; round < rounds; round++) {
            const int passes = !started && round == 0 ? 5 : 1;
            for (int i = 0; i < passes; i++) filling.search(pass++);
            const double changed = filling.vote();
            filling.compare();
            if (!progress(int(100 * ((coarsest - number) + double(round + 1) / rounds) / (coarsest + 1)), 100))
                return Outcome::stopped;
            if (changed < settled) break;
        }
        if (number == 0) filling.smooth_seams();
        field = std::move(filling.field);
        started = true;
    }
    if (!progress(100, 100)) return Outcome::stopped;
    picture = std::move(levels[0]);
    return Outcome::done;
}

PyObject* fill_hole(PyObject*, PyObject* arguments) {
    int width, height;
    unsigned int seed;
    unsigned long long addresses[3];
    PyObject* listener;
    if (!PyArg_ParseTuple(arguments, "iiIKKKO:fill", &width, &height, &seed, &addresses[0], &addresses[1],
                          &addresses[2], &listener))
        return nullptr;
    if (width < SIDE || height < SIDE || int64_t(width) * height > (int64_t(1) << 28)) {
        PyErr_SetString(PyExc_ValueError, "the picture is smaller than a patch or larger than 2**28 pixels");
        return nullptr;
    }
    uint8_t* pixels = reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(addresses[0]));
    const uint8_t* hole = reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(addresses[1]));
    const uint8_t* source = reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(addresses[2]));
    PyThreadState* state = PyEval_SaveThread();
    Outcome outcome = Outcome::done;
    bool has_memory = true;
    const Progress progress = [&](int done, int of) {
        PyEval_RestoreThread(state);
        bool goes_on = PyErr_CheckSignals() == 0;
        if (goes_on && listener != Py_None) {
            PyObject* answer = PyObject_CallFunction(listener, "ii", done, of);
            goes_on = answer != nullptr && answer != Py_False;
            Py_XDECREF(answer);
        }
        state = PyEval_SaveThread();
        return goes_on;
    };
    try {
        Level picture(width, height);
        for (size_t i = 0; i < picture.hole.size(); i++) {
            std::memcpy(&picture.pixels[i * CHANNELS], pixels + 3 * i, 3);
            picture.hole[i] = hole[i] != 0;
            picture.source[i] = !hole[i] && source[i];
        }
        outcome = fill(picture, seed, progress);
        if (outcome == Outcome::done)
            for (size_t i = 0; i < picture.hole.size(); i++)
                std::memcpy(pixels + 3 * i, &picture.pixels[i * CHANNELS], 3);
    } catch (const std::bad_alloc&) {
        has_memory = false;
    }
    PyEval_RestoreThread(state);
    if (!has_memory) return PyErr_NoMemory();
    if (PyErr_Occurred()) return nullptr;
    return PyLong_FromLong(static_cast<long>(outcome));
}

PyMethodDef methods[] = {
    {"fill", fill_hole, METH_VARARGS,
     "fill(width, height, seed, pixels, hole, source, listener)\n\nFill the hole of `pixels` (3 bytes each) in "
     "place. The arrays are given by their addresses. Returns 0, or 1 if `listener(done, of)` returned False, or "
     "2 if there is nothing to copy."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_patch_fill", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__patch_fill() { return PyModule_Create(&module); }
