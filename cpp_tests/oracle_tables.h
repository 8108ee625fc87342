// Reads the tables that oracle/make_tables.py writes. No torch here: the device code's tests use it, too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace oracle {

struct Table {
  std::vector<int64_t> sizes;  // empty: a single number
  std::vector<double> values;

  // As the operator takes them: offsets as int64_t, say, or u as float.
  template <typename scalar_t>
  std::vector<scalar_t> as() const {
    std::vector<scalar_t> converted(values.size());
    std::transform(
        values.begin(), values.end(), converted.begin(), [](double v) { return static_cast<scalar_t>(v); });
    return converted;
  }
};

// One case of one operator: its arguments by name, "out", "grad" (what arrives at out), "grad_<argument>".
class Case {
 public:
  explicit Case(const std::filesystem::path& path) : name_(path.stem().string()) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error("cannot read " + path.string());
    std::string name;
    size_t rank = 0;
    while (file >> name >> rank) {
      Table table;
      table.sizes.resize(rank);
      size_t count = 1;
      for (int64_t& size : table.sizes) {
        file >> size;
        count *= static_cast<size_t>(size);
      }
      table.values.resize(count);
      for (double& value : table.values) file >> value;
      if (!file) throw std::runtime_error("malformed values of " + name + " in " + path.string());
      tables_[name] = std::move(table);
    }
  }

  const std::string& name() const { return name_; }  // as in "fft_conv.all"
  bool has(const std::string& name) const { return tables_.count(name) > 0; }
  int64_t integer(const std::string& name) const { return static_cast<int64_t>((*this)[name].values.at(0)); }
  const Table& operator[](const std::string& name) const {
    const auto found = tables_.find(name);
    if (found == tables_.end()) throw std::runtime_error(name_ + " has no table " + name);
    return found->second;
  }

 private:
  std::string name_;
  std::map<std::string, Table> tables_;
};

// All cases of an operator in a folder, ordered by name.
inline std::vector<Case> cases_of(const std::filesystem::path& folder, const std::string& op) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().rfind(op + ".", 0) == 0) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) throw std::runtime_error("no tables of " + op + " in " + folder.string());
  return std::vector<Case>(paths.begin(), paths.end());
}

}  // namespace oracle
