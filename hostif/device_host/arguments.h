// What is looked at in the command line before CLI11 parses it: values of flags, and empty values,
// for all options of all subcommands. CLI11 takes more for a flag's value than is documented, and
// of others says no more than the name of the C function that did not like them.
// Stateless; [control], on the main thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_ARGUMENTS_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_ARGUMENTS_H_

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace virtbay::device_host {

// [control] Makes each flag's value `true` or `false`. InvalidArgument naming the option for a flag
// with any other value than true, false, yes, no, on, off, 1 and 0, and for `--option=` without a
// value. `app`: with all of its options and subcommands.
absl::Status CheckArguments(const CLI::App& app, std::vector<std::string>* arguments);

// [control] What `--rlimit-nofile` may be: 0, or from kLeastFileLimit to kMostFileLimit.
CLI::Validator FileLimit();
// [control] What a descriptor's number may be.
CLI::Validator DescriptorNumber();

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_ARGUMENTS_H_
