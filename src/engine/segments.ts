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
  const own = namespaces.ofRoot("ipc");
  if (own !== undefined && own.externalKey === undefined) return;
  // Those of a namespace of the tree's are saved with that.
  const ofOutside = attached.filter(({ pid }) => namespaces.ofTask(pid, "ipc")?.role !== "nested");
  const [first] = ofOutside;
  if (first === undefined) return;
  const only = new Set(ofOutside.map(({ shmid }) => shmid));
  inNamespace("ipc", { pid: first.pid }, () =>
    writeSegments(images, { id: first.id, ids: SAME_IDS, only }),
  );
}

/** The segments that a task may have attached. */
export type SegmentsOf = (pid: number) => Segments | undefined;

/** Makes those again that are gone; undefined for tasks of a tree without any. */
export function attachedSegments(plan: RestorePlan, growth: Growth): SegmentsOf {
  const users = [...plan.tasks.values()].filter(({ mm }) => mm.vmas.some(isSegment));
  const byNamespace = new Map<number, Segments>();
  for (const { ids } of users) {
    const id = ids.ipc_ns_id ?? 0;
    if (!byNamespace.has(id)) byNamespace.set(id, segmentsIn(id, plan, growth));
  }
  return (pid) => byNamespace.get(plan.tasks.get(pid)?.ids.ipc_ns_id ?? 0);
}

function segmentsIn(id: number, plan: RestorePlan, growth: Growth): Segments {
  const isMade = plan.namespaces.byId("ipc", id)?.origin.how === "new";
  if (isMade) return savedSegments(plan.set, id);
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
