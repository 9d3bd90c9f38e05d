# hostif/guest: memory and driver queue; the vhost-user front-end; the FUSE client.
virtbay_add_test(guest_test SOURCES guest_test.cc LIBRARIES virtbay_guest)
virtbay_add_test(guest_vhost_user_test SOURCES guest_vhost_user_test.cc LIBRARIES virtbay_guest)
virtbay_add_test(guest_fuse_test SOURCES guest_fuse_test.cc LIBRARIES virtbay_guest)
