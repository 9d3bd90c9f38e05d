// TempDir: a fresh directory that goes away with the object, contents and all; files made of text.
// Owned by the test; one thread at a time.
#ifndef VIRTBAY_TESTS_SUPPORT_TEMP_DIR_H_
#define VIRTBAY_TESTS_SUPPORT_TEMP_DIR_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

namespace virtbay::testing {

class TempDir {
 public:
  TempDir() {
    std::string name = ::testing::TempDir() + "virtbay-test-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  // Writes a file with that content and returns its path.
  std::filesystem::path Write(const std::string& name, const std::string& content) const {
    std::filesystem::path file = path_ / name;
    std::ofstream out(file, std::ios::binary);
    out << content;
    if (!out.flush()) throw std::runtime_error("cannot write " + file.native());
    return file;
  }

 private:
  std::filesystem::path path_;
};

// Makes a directory the process's place for temporary files for as long as the object lives. For
// tests that leak a plugin's image: with a sanitizer its private copy stays until somebody else
// loads one, and with this it goes with the directory.
class TemporaryFilesIn {
 public:
  explicit TemporaryFilesIn(const std::filesystem::path& place) {
    if (const char* before = getenv("TMPDIR"); before != nullptr) before_ = before;
    setenv("TMPDIR", place.c_str(), 1);
  }
  ~TemporaryFilesIn() {
    if (before_.has_value()) {
      setenv("TMPDIR", before_->c_str(), 1);
    } else {
      unsetenv("TMPDIR");
    }
  }
  TemporaryFilesIn(const TemporaryFilesIn&) = delete;
  TemporaryFilesIn& operator=(const TemporaryFilesIn&) = delete;

 private:
  std::optional<std::string> before_;
};

// The whole content of a file; throws when it cannot be read.
inline std::string ReadFile(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + file.native());
  return std::string(std::istreambuf_iterator<char>(in), {});
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_TEMP_DIR_H_
