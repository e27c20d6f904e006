// Byte pair encoding by a table of merges: texts → ids, exactly as the library tokenizers computes them.
//
// A text falls into segments that no merge can cross, each segment is encoded by itself, and a cache keeps the ids of
// the last ones met. Two characters are cut apart where no merge has them side by side in its result: a token that
// reached across the cut would be such a result. A vocabulary of bytes is first cut into words as its regular
// expressions do. fast.py makes the tables; it says what they hold.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <queue>
#include <vector>

namespace {

constexpr uint32_t CHARACTERS = 0x110000;
constexpr uint32_t NONE = 0xFFFFFFFF;
constexpr uint64_t MIX = 0x9E3779B97F4A7C15;
constexpr int LINES = 1 << 18;       // of the cache, 16 MB
constexpr int KEY = 24, KEPT = 8;    // bytes and ids of a segment that has a line
constexpr int SHORT = 48;            // units that are merged by looking at all of them again

enum Class : uint8_t { LETTER = 1, MARK = 2, NUMBER = 4, PUNCTUATION = 8, SYMBOL = 16, SPACE = 32, BEFORE = 64, AFTER = 128 };

struct alignas(64) Line {
    char key[KEY];
    uint32_t size, count;  // bytes, ids; no bytes: empty
    uint32_t ids[KEPT];
};
static_assert(sizeof(Line) == 64);

struct Merge {
    uint32_t left, right, rank, made;
};

struct Character {
    uint32_t code, at;
};

// The character at `text`, which is valid UTF-8, and how many bytes it has.
inline uint32_t read(const uint8_t* text, int& size) {
    uint32_t first = text[0];
    if (first < 0x80) return size = 1, first;
    if (first < 0xE0) return size = 2, (first & 0x1F) << 6 | (text[1] & 0x3F);
    if (first < 0xF0) return size = 3, (first & 0x0F) << 12 | (text[1] & 0x3F) << 6 | (text[2] & 0x3F);
    return size = 4, (first & 0x07) << 18 | (text[1] & 0x3F) << 12 | (text[2] & 0x3F) << 6 | (text[3] & 0x3F);
}

class Encoder {
  public:
    uint32_t* out = nullptr;

    // `single`: for each character the id that it has alone, or NONE. `bytes`: the id of each byte. `digits`: the most
    // in a word; 0 where units are characters and there are no words. `flags`: of each character.
    Encoder(int digits, const uint32_t* single, const uint32_t* bytes, const uint8_t* flags, const uint32_t* merges,
            int64_t merge_count, const uint32_t* pairs, int64_t pair_count)
        : digits(digits), single(single, single + CHARACTERS), flags(flags, flags + CHARACTERS), lines(LINES) {
        std::memcpy(this->bytes, bytes, sizeof this->bytes);
        int bits = 4;
        while ((int64_t{1} << bits) < 2 * merge_count) ++bits;
        merge_shift = 64 - bits;
        table.assign(size_t{1} << bits, Merge{NONE, NONE, NONE, NONE});
        for (int64_t i = 0; i < merge_count; ++i) {
            const uint32_t* merge = merges + 3 * i;
            size_t slot = place(merge[0], merge[1]);
            while (table[slot].left != NONE) slot = (slot + 1) & (table.size() - 1);
            table[slot] = Merge{merge[0], merge[1], static_cast<uint32_t>(i), merge[2]};
        }
        // A bit for each pair, by hash: another pair on the same bit is not cut apart, which changes no id.
        bits = 10;
        while ((int64_t{1} << bits) < 32 * pair_count) ++bits;
        pair_shift = 64 - bits;
        beside.assign((size_t{1} << bits) / 64, 0);
        for (int64_t i = 0; i < pair_count; ++i) {
            uint64_t bit = pair(pairs[2 * i], pairs[2 * i + 1]);
            beside[bit / 64] |= uint64_t{1} << bit % 64;
        }
    }

    void encode(const uint8_t* text, const uint8_t* end) {
        digits ? words(text, end) : segments(text, end);
    }

  private:
    int digits, merge_shift, pair_shift;
    std::vector<uint32_t> single;
    std::vector<uint8_t> flags;
    uint32_t bytes[256];
    std::vector<Merge> table;
    std::vector<uint64_t> beside;
    std::vector<Line> lines;
    std::vector<uint32_t> units, ranks, made;
    std::vector<Character> read_ahead;

    size_t place(uint32_t left, uint32_t right) const {
        return ((uint64_t{left} << 32 | right) * MIX) >> merge_shift;
    }

    uint64_t pair(uint32_t left, uint32_t right) const {
        return ((uint64_t{left} << 32 | right) * MIX) >> pair_shift;
    }

    // Whether a merge may have these two characters side by side.
    bool joined(uint32_t left, uint32_t right) const {
        uint64_t bit = pair(left, right);
        return (beside[bit / 64] >> bit % 64 & 1) || (flags[left] & AFTER) || (flags[right] & BEFORE);
    }

    const Merge* merge(uint32_t left, uint32_t right) const {
        for (size_t slot = place(left, right);; slot = (slot + 1) & (table.size() - 1)) {
            const Merge& found = table[slot];
            if (found.left == left && found.right == right) return &found;
            if (found.left == NONE) return nullptr;
        }
    }

    // ── segments ──────────────────────────────────────────────────────────────────────────────────────────────────
    // Cut where no merge can cross. A blank is U+2581 where units are characters.
    void segments(const uint8_t* text, const uint8_t* end) {
        const uint8_t* start = text;
        uint32_t before = NONE, count = 0;
        uint64_t hash = 0;
        while (text < end) {
            int size;
            uint32_t code = read(text, size);
            if (code == ' ' && !digits) code = 0x2581;
            if (count && !joined(before, code)) {
                segment(start, text, count == 1 ? before : NONE, hash);
                start = text;
                count = 0, hash = 0;
            }
            hash = (hash + code + 1) * MIX;
            before = code, ++count, text += size;
        }
        if (count) segment(start, end, count == 1 ? before : NONE, hash);
    }

    // `alone`: its only character, or NONE.
    void segment(const uint8_t* start, const uint8_t* end, uint32_t alone, uint64_t hash) {
        if (alone != NONE && single[alone] != NONE) {
            *out++ = single[alone];
            return;
        }
        size_t size = end - start;
        if (size > KEY) {
            merged(start, end);
            return;
        }
        Line& line = lines[(hash ^ hash >> 29) * MIX >> 46];
        if (line.size == size && std::memcmp(line.key, start, size) == 0) {
            std::memcpy(out, line.ids, sizeof line.ids);  // the room for ids has KEPT more
            out += line.count;
            return;
        }
        uint32_t* first = out;
        merged(start, end);
        size_t count = out - first;
        if (count > KEPT) return;
        std::memcpy(line.key, start, size);
        std::memcpy(line.ids, first, count * sizeof *first);
        line.size = size, line.count = count;
        if (alone != NONE && count == 1) single[alone] = *first;
    }

    // ── merges ────────────────────────────────────────────────────────────────────────────────────────────────────
    void merged(const uint8_t* text, const uint8_t* end) {
        units.clear();
        while (text < end) {
            int size = 1;
            uint32_t id = NONE;
            if (!digits) {
                uint32_t code = read(text, size);
                id = single[code == ' ' ? 0x2581 : code];
            }
            if (id != NONE) units.push_back(id);
            else
                for (int i = 0; i < size; ++i) units.push_back(bytes[text[i]]);
            text += size;
        }
        units.size() <= SHORT ? merge_few() : merge_many();
    }

    void merge_few() {
        size_t count = units.size();
        ranks.assign(count, NONE);
        made.resize(count);
        auto look = [&](size_t i) {
            const Merge* found = merge(units[i], units[i + 1]);
            ranks[i] = found ? found->rank : NONE;
            if (found) made[i] = found->made;
        };
        for (size_t i = 0; i + 1 < count; ++i) look(i);
        while (count > 1) {
            size_t best = std::min_element(ranks.begin(), ranks.begin() + count - 1) - ranks.begin();
            if (ranks[best] == NONE) break;
            units[best] = made[best];
            std::move(units.begin() + best + 2, units.begin() + count, units.begin() + best + 1);
            std::move(ranks.begin() + best + 2, ranks.begin() + count, ranks.begin() + best + 1);
            std::move(made.begin() + best + 2, made.begin() + count, made.begin() + best + 1);
            --count;
            if (best + 1 < count) look(best);
            else ranks[best] = NONE;
            if (best) look(best - 1);
        }
        out = std::copy(units.begin(), units.begin() + count, out);
    }

    void merge_many() {
        struct Found {
            uint32_t rank, at, left, right, made;
            bool operator<(const Found& other) const {  // the lowest rank is on top, of these the leftmost
                return rank != other.rank ? rank > other.rank : at > other.at;
            }
        };
        uint32_t count = units.size();
        std::vector<uint32_t> next(count), previous(count);
        std::vector<Found> first;
        auto add = [&](auto& heap, uint32_t at, uint32_t after) {
            if (const Merge* found = merge(units[at], units[after]))
                heap.push_back(Found{found->rank, at, found->left, found->right, found->made});
            else
                return false;
            return true;
        };
        for (uint32_t i = 0; i < count; ++i) {
            next[i] = i + 1, previous[i] = i - 1;
            if (i + 1 < count) add(first, i, i + 1);
        }
        std::make_heap(first.begin(), first.end());
        while (!first.empty()) {
            std::pop_heap(first.begin(), first.end());
            Found found = first.back();
            first.pop_back();
            uint32_t at = found.at, after = next[at];
            if (units[at] != found.left || after >= count || units[after] != found.right) continue;
            units[at] = found.made, units[after] = NONE;
            next[at] = next[after];
            if (next[at] < count) {
                previous[next[at]] = at;
                if (add(first, at, next[at])) std::push_heap(first.begin(), first.end());
            }
            if (at && add(first, previous[at], at)) std::push_heap(first.begin(), first.end());
        }
        for (uint32_t i = 0; i < count; i = next[i]) *out++ = units[i];
    }

    // ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────
    // As train.SPLITS cuts: one regular expression after the other, each inside what those before it left.
    void words(const uint8_t* text, const uint8_t* end) {
        read_ahead.clear();
        for (const uint8_t* at = text; at < end;) {
            int size;
            uint32_t code = read(at, size);
            read_ahead.push_back(Character{code, static_cast<uint32_t>(at - text)});
            at += size;
        }
        uint32_t count = read_ahead.size();
        read_ahead.push_back(Character{0, static_cast<uint32_t>(end - text)});
        for (uint32_t i = 0, stop; i < count; i = stop) {
            stop = i + 1;
            if (is(i, NUMBER)) {
                while (stop < count && stop - i < static_cast<uint32_t>(digits) && is(stop, NUMBER)) ++stop;
            } else if (digits == 1) {
                while (stop < count && !is(stop, NUMBER)) ++stop;
            } else {
                bool run = in_run(i);
                while (stop < count && !is(stop, NUMBER) && in_run(stop) == run) ++stop;
            }
            part(text, i, stop);
        }
    }

    bool is(uint32_t i, int kinds) const { return flags[read_ahead[i].code] & kinds; }

    bool in_run(uint32_t i) const {
        uint32_t code = read_ahead[i].code;
        return (code >= 0x4E00 && code <= 0x9FA5) || (code >= 0x3040 && code <= 0x30FF);
    }

    // The last regular expression on characters i to end; what it does not match is a word, too.
    void part(const uint8_t* text, uint32_t i, uint32_t end) {
        uint32_t from = i;
        auto word = [&](uint32_t a, uint32_t b) {
            if (a < b) segments(text + read_ahead[a].at, text + read_ahead[b].at);
        };
        while (i < end) {
            uint32_t stop = digits == 1 ? by_gpt2(i, end) : by_deepseek(i, end);
            if (stop == i) {
                ++i;
                continue;
            }
            word(from, i);
            word(i, stop);
            from = i = stop;
        }
        word(from, end);
    }

    uint32_t run(uint32_t i, uint32_t end, int kinds) const {
        while (i < end && is(i, kinds)) ++i;
        return i;
    }

    uint32_t run_of_others(uint32_t i, uint32_t end, int kinds) const {
        while (i < end && !is(i, kinds)) ++i;
        return i;
    }

    // \s+(?!\S)|\s+ from a blank on
    uint32_t blanks(uint32_t i, uint32_t end) const {
        uint32_t stop = run(i, end, SPACE);
        return stop == end || stop == i + 1 ? stop : stop - 1;
    }

    bool newline(uint32_t i) const { return read_ahead[i].code == '\n' || read_ahead[i].code == '\r'; }

    bool ascii_letter(uint32_t i) const { return read_ahead[i].code < 0x80 && is(i, LETTER); }

    uint32_t by_deepseek(uint32_t i, uint32_t end) const {
        uint32_t code = read_ahead[i].code, stop = i;
        if (code < 0x80 && is(i, PUNCTUATION | SYMBOL) && i + 1 < end && ascii_letter(i + 1)) {
            for (stop = i + 1; stop < end && ascii_letter(stop);) ++stop;
            return stop;
        }
        if (is(i, LETTER | MARK)) return run(i, end, LETTER | MARK);
        if (!newline(i) && !is(i, PUNCTUATION | SYMBOL) && i + 1 < end && is(i + 1, LETTER | MARK))
            return run(i + 1, end, LETTER | MARK);
        stop = run(i + (code == ' '), end, PUNCTUATION | SYMBOL);
        if (stop > i + (code == ' ')) {
            while (stop < end && newline(stop)) ++stop;
            return stop;
        }
        if (!is(i, SPACE)) return i;
        for (stop = run(i, end, SPACE); stop > i; --stop)
            if (newline(stop - 1)) return stop;
        return blanks(i, end);
    }

    uint32_t by_gpt2(uint32_t i, uint32_t end) const {
        uint32_t code = read_ahead[i].code;
        if (code == '\'' && i + 1 < end) {
            uint32_t one = read_ahead[i + 1].code, two = i + 2 < end ? read_ahead[i + 2].code : 0;
            if (one == 's' || one == 't' || one == 'm' || one == 'd') return i + 2;
            if ((one == 'r' && two == 'e') || (one == 'v' && two == 'e') || (one == 'l' && two == 'l')) return i + 3;
        }
        uint32_t begin = i + (code == ' ');
        for (int kinds : {int{LETTER}, int{NUMBER}})
            if (begin < end && is(begin, kinds)) return run(begin, end, kinds);
        if (begin < end && !is(begin, SPACE | LETTER | NUMBER)) return run_of_others(begin, end, SPACE | LETTER | NUMBER);
        return is(i, SPACE) ? blanks(i, end) : i;
    }
};

}  // namespace

extern "C" {

void* babyllama_encoder(int digits, const uint32_t* single, const uint32_t* bytes, const uint8_t* flags,
                        const uint32_t* merges, int64_t merge_count, const uint32_t* pairs, int64_t pair_count) {
    return new Encoder(digits, single, bytes, flags, merges, merge_count, pairs, pair_count);
}

void babyllama_encoder_free(void* encoder) { delete static_cast<Encoder*>(encoder); }

// Texts that lie one after the other, each up to its place in `ends` (bytes) → ids, and where each text's end.
void babyllama_encode(void* encoder, const uint8_t* text, const int64_t* ends, int64_t count, uint32_t* ids,
                      int64_t* id_ends) {
    Encoder& with = *static_cast<Encoder*>(encoder);
    with.out = ids;
    int64_t start = 0;
    for (int64_t i = 0; i < count; ++i) {
        with.encode(text + start, text + ends[i]);
        start = ends[i];
        id_ends[i] = with.out - ids;
    }
}
}
