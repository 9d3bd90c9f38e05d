// Fuzz target: the files that `virtbay replay` reads. What is read as whole is written again, and read
// as the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "hostif/record/record_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace virtbay::record;
  const auto file = Parse({reinterpret_cast<const char*>(data), size});
  if (!file.ok()) return 0;
  std::string bytes;
  AppendHead(file->head, &bytes);
  for (const virtbay::RequestRecord& record : file->records) AppendRecord(record, &bytes);
  const auto again = Parse(bytes);
  if (!again.ok() || again->cut || again->records.size() != file->records.size()) abort();
  std::string twice;
  AppendHead(again->head, &twice);
  for (const virtbay::RequestRecord& record : again->records) AppendRecord(record, &twice);
  if (twice != bytes) abort();
  return 0;
}
