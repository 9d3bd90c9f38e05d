# Configures a preset; sourced by scripts that have set ROOT.

# configure_build PRESET: does nothing when the build directory is configured already (ninja
# re-runs cmake by itself when a CMake file has changed).
configure_build() {
  local preset=$1 launcher=()
  if [ -e "$ROOT/build/$preset/build.ninja" ]; then return 0; fi
  if command -v ccache >/dev/null; then
    launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  fi
  local log
  log=$(mktemp)
  if ! (cd "$ROOT" && cmake --preset "$preset" "${launcher[@]}") >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}
