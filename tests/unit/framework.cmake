# framework/virtq, framework/io, framework/device.
virtbay_add_test(virtq_test
  SOURCES virtq_test.cc virtq_layout_test.cc virtq_packed_test.cc virtq_pair_test.cc
  LIBRARIES virtbay_virtq virtbay_guest)
virtbay_add_test(io_test SOURCES io_test.cc LIBRARIES virtbay_io)

# A plugin that does what its requests say, with one thread for all queues and with one for each.
virtbay_add_plugin(test_op SOURCES op_device.cc LIBRARIES virtbay_flags)
target_compile_definitions(test_op PRIVATE OP_DEVICE_FLAGS=0)
virtbay_add_plugin(test_op_parallel SOURCES op_device.cc LIBRARIES virtbay_flags)
target_compile_definitions(test_op_parallel
  PRIVATE OP_DEVICE_FLAGS=VIRTBAY_DEVICE_QUEUE_PARALLEL)

# Two builds of one plugin, to be reloaded from one to the other; the second saves a newer state.
foreach(version 1 2)
  virtbay_add_plugin(test_reload_${version} SOURCES reload_device.cc LIBRARIES virtbay_flags
                     VERSION ${version}.0)
  target_compile_definitions(test_reload_${version} PRIVATE RELOAD_VERSION=${version})
endforeach()

# One that sends and receives what its requests describe.
foreach(variant message message_parallel)
  virtbay_add_plugin(test_${variant} SOURCES message_device.cc LIBRARIES virtbay_flags)
endforeach()
target_compile_definitions(test_message PRIVATE MESSAGE_DEVICE_FLAGS=0)
target_compile_definitions(test_message_parallel
  PRIVATE MESSAGE_DEVICE_FLAGS=VIRTBAY_DEVICE_QUEUE_PARALLEL)
virtbay_add_test(device_message_test SOURCES device_message_test.cc LIBRARIES virtbay_guest)
target_compile_definitions(device_message_test PRIVATE
  VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
  VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>"
  VIRTBAY_MESSAGE_PLUGIN="$<TARGET_FILE:test_message>"
  VIRTBAY_MESSAGE_PARALLEL_PLUGIN="$<TARGET_FILE:test_message_parallel>")
add_dependencies(device_message_test test_op test_op_parallel test_message test_message_parallel)

virtbay_add_test(in_flight_log_test SOURCES in_flight_log_test.cc LIBRARIES virtbay_guest)

virtbay_add_test(device_parts_test
  SOURCES poll_window_test.cc metrics_test.cc offload_pool_test.cc
          slot_waits_test.cc transfer_helper_test.cc descriptor_budget_test.cc notifier_test.cc
  LIBRARIES virtbay_device)
# The same over split and over packed rings.
foreach(layout IN ITEMS split packed)
  set(name device_test)
  if(layout STREQUAL packed)
    set(name device_packed_test)
  endif()
  virtbay_add_test(${name}
    SOURCES device_life_test.cc device_memory_test.cc device_notify_test.cc device_ring_test.cc
            device_room_test.cc device_service_test.cc device_aperture_test.cc
            device_control_test.cc device_isolation_test.cc device_farewell_test.cc
            device_park_test.cc device_queue_test.cc device_reload_test.cc device_suspend_test.cc
    LIBRARIES virtbay_guest)
  target_compile_definitions(${name} PRIVATE
    VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
    VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>"
    VIRTBAY_RELOAD_1_PLUGIN="$<TARGET_FILE:test_reload_1>"
    VIRTBAY_RELOAD_2_PLUGIN="$<TARGET_FILE:test_reload_2>"
    VIRTBAY_RNG_PLUGIN="$<TARGET_FILE:rng>")
  add_dependencies(${name} test_op test_op_parallel test_reload_1 test_reload_2 rng)
endforeach()
target_compile_definitions(device_packed_test PRIVATE VIRTBAY_TEST_PACKED_RINGS)
# Processes of their own, which are tainted by it.
foreach(layout IN ITEMS crash crash_packed)
  virtbay_add_test(device_${layout}_test
    SOURCES device_crash_test.cc device_crash_vhost_user_test.cc
    LIBRARIES virtbay_guest virtbay_vhost_user virtbay_bad_plugin_dir)
  target_compile_definitions(device_${layout}_test PRIVATE
    VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
    VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>"
    VIRTBAY_RELOAD_1_PLUGIN="$<TARGET_FILE:test_reload_1>"
    VIRTBAY_RELOAD_2_PLUGIN="$<TARGET_FILE:test_reload_2>")
  add_dependencies(device_${layout}_test test_op test_op_parallel test_reload_1 test_reload_2)
endforeach()
target_compile_definitions(device_crash_packed_test PRIVATE VIRTBAY_TEST_PACKED_RINGS)
virtbay_add_test(plugin_contract_test
  SOURCES plugin_contract_test.cc
  LIBRARIES virtbay_guest virtbay_bad_plugin_dir)
target_compile_definitions(plugin_contract_test PRIVATE
  VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
  VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>")
add_dependencies(plugin_contract_test test_op test_op_parallel)
virtbay_add_test(device_trace_test
  SOURCES device_trace_test.cc
  LIBRARIES virtbay_guest virtbay_trace nlohmann_json::nlohmann_json)
target_compile_definitions(device_trace_test PRIVATE
  VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
  VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>")
add_dependencies(device_trace_test test_op test_op_parallel)
