// Landlock: include/uapi/linux/landlock.h.

/** Flag of landlock_create_ruleset: tell the version only. */
export const LANDLOCK_CREATE_RULESET_VERSION = 1;
