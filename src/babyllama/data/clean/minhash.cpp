// Texts → signatures and bands, exactly as minhash.py computes them with numpy; it says what they are.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

constexpr uint32_t EMPTY = 0xFFFFFFFF;
constexpr uint32_t STEP = 0x9E3779B1, FINAL = 0x85EBCA6B;  // of `hashes` in measures.py
constexpr uint64_t BAND = 0xD6E8FEB86659FD93;
constexpr int64_t PIECE = 2048;                             // hashes at a time: they stay in the first cache

inline uint32_t mixed(uint32_t hash, uint32_t round) {
    hash += round * 0x9E3779B9u;
    hash ^= hash >> 16;
    hash *= 0x7FEB352Du;
    hash ^= hash >> 15;
    hash *= 0x846CA68Bu;
    return hash ^ hash >> 16;
}

inline uint32_t bin_of(uint32_t hash, uint32_t bins) { return uint64_t{hash} * bins >> 32; }

// The hash of each run of `size` letters, digits and hanzi of a text, whose `terms` are not 0.
class Shingles {
  public:
    Shingles(const uint32_t* table, int size) : table(table), size(size) {}

    // How many there are; they are at `hashes`.
    int64_t of(const uint32_t* codes, int64_t length) {
        if (static_cast<int64_t>(terms.size()) < length + 1) terms.resize(length + 1), hashes.resize(length + 1);
        uint32_t* end = terms.data();
        for (int64_t i = 0; i < length; ++i) {
            uint32_t term = table[std::min(codes[i], 0x10FFFFu)];
            *end = term;
            end += term != 0;
        }
        int64_t count = std::max<int64_t>(end - terms.data() - size + 1, 0);
        for (int64_t start = 0; start < count; start += PIECE)
            hash(terms.data() + start, std::min(PIECE, count - start), hashes.data() + start);
        return count;
    }

    const uint32_t* data() const { return hashes.data(); }

  private:
    const uint32_t* table;
    int size;
    std::vector<uint32_t> terms, hashes;

    void hash(const uint32_t* from, int64_t count, uint32_t* to) const {
        std::copy(from, from + count, to);
        for (int place = 1; place < size; ++place)
            for (int64_t i = 0; i < count; ++i) to[i] = to[i] * STEP + from[i + place];
        for (int64_t i = 0; i < count; ++i) {
            uint32_t hash = to[i] ^ to[i] >> 16;
            hash *= FINAL;
            to[i] = hash ^ hash >> 16;
        }
    }
};

// The rounds: in each, of the bins that no round before has filled. What a loop of its own hashes, the compiler hashes
// many at a time.
class Rounds {
  public:
    explicit Rounds(uint32_t bins) : bins(bins), least(bins), other(PIECE) {}

    void fill(const uint32_t* hashes, int64_t count, uint32_t* minima) {
        into_bins(hashes, count, minima);
        for (uint32_t round = 1; round < 2 * bins; ++round) {
            uint32_t empty = 0;
            for (uint32_t bin = 0; bin < bins; ++bin) empty += minima[bin] == EMPTY;
            if (!empty) return;
            std::fill(least.begin(), least.end(), EMPTY);
            for (int64_t start = 0; start < count; start += PIECE) {
                int64_t part = std::min(PIECE, count - start);
                for (int64_t i = 0; i < part; ++i) other[i] = mixed(hashes[start + i], round);
                if (round < bins) into_bins(other.data(), part, least.data());
                else
                    for (int64_t i = 0; i < part; ++i) least[round - bins] = std::min(least[round - bins], other[i]);
            }
            for (uint32_t bin = 0; bin < bins; ++bin) minima[bin] = minima[bin] == EMPTY ? least[bin] : minima[bin];
        }
    }

  private:
    uint32_t bins;
    std::vector<uint32_t> least, other;

    void into_bins(const uint32_t* hashes, int64_t count, uint32_t* minima) const {
        for (int64_t i = 0; i < count; ++i) {
            uint32_t hash = hashes[i], &bin = minima[bin_of(hash, bins)];
            bin = std::min(bin, hash);
        }
    }
};

}  // namespace

// `codes`: the characters of all texts; `ends`: where each text ends. `counts` (texts,), `minima` (texts, bins) and
// `bands` (bins / rows, texts), whose lines are `stride` apart, are written.
extern "C" void babyllama_minhash(const uint32_t* codes, const int64_t* ends, int64_t texts, const uint32_t* table,
                                  int32_t size, int32_t bins, int32_t rows, int64_t* counts, uint32_t* minima,
                                  uint64_t* bands, int64_t stride) {
    Shingles shingles(table, size);
    Rounds rounds(bins);
    int64_t start = 0;
    for (int64_t text = 0; text < texts; start = ends[text++], minima += bins) {
        int64_t count = counts[text] = shingles.of(codes + start, ends[text] - start);
        std::fill(minima, minima + bins, EMPTY);
        if (count > 0) rounds.fill(shingles.data(), count, minima);
        for (int32_t band = 0; band < bins / rows; ++band) {
            uint64_t value = 0;
            for (int32_t row = 0; row < rows; ++row) {
                value = (value ^ minima[band * rows + row]) * BAND;
                value ^= value >> 32;
            }
            bands[band * stride + text] = count > 0 ? value : 0;
        }
    }
}

// The shingles of one text, as they come, at `hashes`; how many there are.
extern "C" int64_t babyllama_shingles(const uint32_t* codes, int64_t length, const uint32_t* table, int32_t size,
                                      uint32_t* hashes) {
    Shingles shingles(table, size);
    int64_t count = shingles.of(codes, length);
    std::copy(shingles.data(), shingles.data() + count, hashes);
    return count;
}
