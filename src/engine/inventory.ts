// inventory.img: what kind of set this is, and the engine's own kernel objects as the point of comparison.

import { OWN_CGROUP_SET } from "../objects/cgroups/dump.ts";
import { hostLsm, lsmCode } from "../objects/task/lsm.ts";
import type { MessageInput } from "../images/codec.ts";
import type { InventoryEntry, RepriseMachine } from "../images/schema/messages.generated.ts";
import type { NetworkLock } from "../objects/network/lock.ts";
import type { CollectedTree } from "./collect.ts";
import { uptimeMicroseconds } from "./incremental.ts";

/** Image format 1.1. */
const IMG_VERSION = 2;

interface InventoryParts {
  readonly lock: NetworkLock;
  readonly uptime: boolean;
  readonly machine: MessageInput<RepriseMachine>;
}

/** The inventory of a full dump; with the time of the dump if it may be the parent of another. */
export function inventoryEntry(
  collected: CollectedTree,
  { lock, uptime, machine }: InventoryParts,
): MessageInput<InventoryEntry> {
  return {
    img_version: IMG_VERSION,
    fdinfo_per_id: true,
    root_ids: collected.rootIds,
    ns_per_id: true,
    root_cg_set: OWN_CGROUP_SET,
    lsmtype: lsmCode(hostLsm()),
    machine,
    plugins_entry: { plugins: [] },
    ...(uptime ? { dump_uptime: uptimeMicroseconds() } : {}),
    ...(collected.namespaces.relations.length === 0
      ? {}
      : { reprise: { namespaces: collected.namespaces.relations } }),
    ...collected.files.inventory,
    ...lock.inventory,
  };
}
