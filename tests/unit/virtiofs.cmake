# The virtio-fs plugin: its parts by themselves, and the whole of it behind the in-process guest.
virtbay_add_test(virtiofs_parts_test
  SOURCES virtiofs_options_test.cc virtiofs_tables_test.cc virtiofs_lock_ranges_test.cc
          virtiofs_view_test.cc virtiofs_identity_test.cc virtiofs_state_parts_test.cc
          virtiofs_keep_test.cc
  LIBRARIES virtiofs_core)
if(VIRTBAY_SANITIZE)
  # GCC takes its own checks for a fill of less than nothing.
  set_source_files_properties(virtiofs_state_parts_test.cc PROPERTIES
    COMPILE_OPTIONS "$<$<CXX_COMPILER_ID:GNU>:-Wno-stringop-overflow;-Wno-array-bounds>")
endif()
virtbay_add_test(virtiofs_test
  SOURCES virtiofs_ops_test.cc virtiofs_dir_test.cc virtiofs_locks_test.cc
          virtiofs_hostile_test.cc virtiofs_session_test.cc virtiofs_credentials_test.cc
          virtiofs_nameless_test.cc virtiofs_deadlock_test.cc virtiofs_unprivileged_test.cc
          virtiofs_aggregate_test.cc virtiofs_aggregate_life_test.cc
          virtiofs_names_test.cc virtiofs_ownership_test.cc virtiofs_descriptors_test.cc
          virtiofs_state_test.cc virtiofs_state_golden_test.cc
  LIBRARIES virtbay_guest virtbay_shares)
target_compile_definitions(virtiofs_test PRIVATE
  VIRTBAY_VIRTIOFS_PLUGIN="$<TARGET_FILE:virtiofs>"
  VIRTBAY_STATE_DATA="${PROJECT_SOURCE_DIR}/tests/data/state")
add_dependencies(virtiofs_test virtiofs)
# What a session does, over packed rings.
virtbay_add_test(virtiofs_packed_test
  SOURCES virtiofs_ops_test.cc virtiofs_dir_test.cc virtiofs_hostile_test.cc virtiofs_session_test.cc
          virtiofs_deadlock_test.cc
  LIBRARIES virtbay_guest virtbay_shares)
target_compile_definitions(virtiofs_packed_test PRIVATE
  VIRTBAY_VIRTIOFS_PLUGIN="$<TARGET_FILE:virtiofs>" VIRTBAY_TEST_PACKED_RINGS)
add_dependencies(virtiofs_packed_test virtiofs)
