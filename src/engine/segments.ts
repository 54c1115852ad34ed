// System V shared memory that tasks have attached and that lies in an IPC namespace which is not the tree's own: it is saved with the
// tasks. In a namespace of the tree's own, the namespace's room saves and makes all segments.

import type { ImageSetWriter } from "../images/image-set.ts";
import {
  isSegment,
  restoreSegments,
  savedSegments,
  writeSegments,
  type Segments,
} from "../objects/ipc/shm.ts";
import { SAME_IDS } from "../objects/ipc/sysv.ts";
import { inNamespace } from "../objects/namespaces/enter.ts";
import type { CollectedTree } from "./collect.ts";
import type { Growth } from "./growth.ts";
import type { RestorePlan } from "./plan.ts";

/** Saves the segments that the tasks of a tree have attached, unless the namespace's room does. */
export function writeAttachedSegments(
  { live, namespaces }: CollectedTree,
  images: ImageSetWriter,
): void {
  const attached = live.flatMap(({ task, ids, vmas }) =>
    vmas
      .filter(({ entry }) => isSegment(entry))
      .map(({ entry }) => ({ pid: task.pid, id: ids.ipc_ns_id ?? 0, shmid: entry.shmid })),
  );
  const [first] = attached;
  const own = namespaces.ofRoot("ipc");
  if (first === undefined || (own !== undefined && own.externalKey === undefined)) return;
  const only = new Set(attached.map(({ shmid }) => shmid));
  inNamespace("ipc", { pid: first.pid }, () =>
    writeSegments(images, { id: first.id, ids: SAME_IDS, only }),
  );
}

/** Makes them again where they are gone; undefined for a tree without any. */
export function attachedSegments(plan: RestorePlan, growth: Growth): Segments | undefined {
  const users = [...plan.tasks.values()].filter(({ mm }) => mm.vmas.some(isSegment));
  const id = users[0]?.ids.ipc_ns_id;
  if (id === undefined) return undefined;
  if (plan.namespaces.made("ipc") !== undefined) return savedSegments(plan.set, id);
  const where = { pid: growth.outerPid(plan.tree.root.pid) };
  const segments = inNamespace("ipc", where, () =>
    restoreSegments(plan.set, { id, ids: SAME_IDS, isShared: true }),
  );
  // The engine may be in another namespace than the tree, and the tree gone when it has failed.
  growth.ends.push({
    release: () => inNamespace("ipc", where, () => segments.removeDead()),
    failed: () => segments.giveUp(),
  });
  return segments;
}
