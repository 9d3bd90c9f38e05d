// Runs a libFuzzer target without libFuzzer, so that every compiler and every test run exercises
// it: first the files and folders named on the command line, then, with -runs=N, N mutations of
// them that are the same in every run. Prints how many inputs it ran; a finding ends the process.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

constexpr size_t kMaxInput = 1u << 16;

bool Load(const std::filesystem::path& path, std::vector<Input>* corpus) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    // The order of a directory is not the same everywhere, the mutations are to be.
    std::sort(files.begin(), files.end());
    return !error && std::all_of(files.begin(), files.end(),
                                 [&](const auto& file) { return Load(file, corpus); });
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return false;
  corpus->emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  return true;
}

Input Mutate(const std::vector<Input>& corpus, std::mt19937_64* random) {
  const auto below = [&](size_t bound) {
    return static_cast<size_t>((*random)() % std::max<size_t>(bound, 1));
  };
  Input input = corpus.empty() ? Input(below(256)) : corpus[below(corpus.size())];
  if (corpus.empty()) {
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(below(256));
  }
  for (size_t rounds = 1 + below(8); rounds != 0; --rounds) {
    const size_t at = below(input.size() + 1);
    const auto here = [&] { return input.begin() + static_cast<Input::difference_type>(at); };
    const size_t rest = input.size() - at;
    switch (below(7)) {
      case 0:
        if (rest != 0) input[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:
        if (rest != 0) input[at] = static_cast<uint8_t>(below(256));
        break;
      case 2: {
        // A number at the edge of something, in one of four widths.
        constexpr uint64_t kEdges[] = {0, 1, 255, 256, 0x7fff'ffff, 0xffff'ffff, ~uint64_t{0}};
        const uint64_t value = kEdges[below(std::size(kEdges))] - below(2);
        const size_t width = size_t{1} << below(4);
        if (rest >= width) std::memcpy(input.data() + at, &value, width);
        break;
      }
      case 3: {
        const Input piece(below(16), static_cast<uint8_t>(below(256)));
        input.insert(here(), piece.begin(), piece.end());
        break;
      }
      case 4:
        input.erase(here(),
                    here() + static_cast<Input::difference_type>(std::min(rest, below(16))));
        break;
      case 5:
        input.resize(at);
        break;
      default:
        // The end of another input: sequences of messages that belong to two sessions.
        if (!corpus.empty()) {
          const Input& other = corpus[below(corpus.size())];
          const auto from = static_cast<Input::difference_type>(below(other.size() + 1));
          input.insert(here(), other.begin() + from, other.end());
        }
    }
  }
  if (input.size() > kMaxInput) input.resize(kMaxInput);
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Input> corpus;
  uint64_t runs = 0;
  for (int i = 1; i < argc; ++i) {
    constexpr char kRuns[] = "-runs=";
    if (std::strncmp(argv[i], kRuns, sizeof kRuns - 1) == 0) {
      runs = std::strtoull(argv[i] + sizeof kRuns - 1, nullptr, 10);
    } else if (!Load(argv[i], &corpus)) {
      std::fprintf(stderr, "%s: cannot read '%s'\n", argv[0], argv[i]);
      return 1;
    }
  }
  for (const Input& input : corpus) LLVMFuzzerTestOneInput(input.data(), input.size());
  std::mt19937_64 random(20'261'122);
  for (uint64_t i = 0; i < runs; ++i) {
    const Input input = Mutate(corpus, &random);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%zu inputs and %llu mutations\n", corpus.size(),
              static_cast<unsigned long long>(runs));
  return 0;
}
