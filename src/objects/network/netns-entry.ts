// netns.img of a namespace of which nothing but a key is saved, or nothing at all.

import type { NetnsEntry } from "../../images/schema/messages.generated.ts";

/** The entry without a setting. */
export const EMPTY_NETNS: NetnsEntry = {
  def_conf: [],
  all_conf: [],
  def_conf4: [],
  all_conf4: [],
  def_conf6: [],
  all_conf6: [],
  nsids: [],
  unix_conf: [],
  ipv4_sysctl: [],
  sysctls: [],
};
