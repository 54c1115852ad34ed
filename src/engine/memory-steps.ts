// The calls that give a task its memory: what it has in common with its children before it makes them, the rest when the tree stands.

import { join } from "node:path";
import type { PlacedPages } from "../images/page-places.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { restoreAioRing } from "../objects/memory/aio.ts";
import { announceProbes, isText, mapTextAgain } from "../objects/memory/breakpoints.ts";
import { attachSegments, isSegment, type Segments } from "../objects/ipc/shm.ts";
import { restoreAreaPolicies } from "../objects/memory/numa.ts";
import type { Probe } from "../objects/probe.ts";
import { readPages, readsDirectly } from "../objects/memory/read-pages.ts";
import { restoreVdso } from "../objects/memory/vdso.ts";
import { finishVma, installGuard, isMapped, mapVma, VMA_GUARD } from "../objects/memory/vma.ts";
import { F_SETFL, O_DIRECT } from "../sys/abi/fcntl.ts";
import { MADV_DONTNEED } from "../sys/abi/mman.ts";
import type { Program } from "../tracee/program.ts";
import type { BulkFill } from "./bulk-fill.ts";
import { openImage, type ImageFiles } from "./image-files.ts";
import type { OpenedFiles } from "./open-files.ts";
import { firstIn } from "./inherit-memory.ts";
import { mapsFile, type TaskPlan } from "./plan.ts";

export interface MemorySurroundings {
  readonly files: OpenedFiles;
  readonly images: ImageFiles;
  readonly imagesDir: string;
}

/** Makes what a task has in common with its children, and puts right what it has from its creator. */
export function addEarlyMemory(program: Program, task: TaskPlan, around: MemorySurroundings): void {
  const { early, inherited, foreign, dropped, earlyPages } = task.memory;
  for (const { start, end } of foreign) {
    program.call("munmap", [start, end - start], {
      label: `give up memory ${start.toString(16)} that is a sibling's of pid ${task.pid}`,
    });
  }
  for (const vma of early) {
    if (inherited.has(vma)) continue;
    mapArea(program, task, vma, around);
  }
  for (const { address, length } of dropped) {
    program.call("madvise", [address, length, MADV_DONTNEED], {
      label: `drop pages at ${address.toString(16)} that pid ${task.pid} does not share`,
    });
  }
  addPages(program, earlyPages, around);
}

/** Makes the rest of a task's memory, and gives all of it its properties. Returns a probe of what could not be given back. */
export function addLateMemory(
  program: Program,
  task: TaskPlan,
  around: MemorySurroundings & {
    readonly segments: Segments | undefined;
    /** The set may have text with breakpoints of probes that are still there: one of CRIU's (--allow-uprobes). */
    readonly hasBreakpoints: boolean;
    /** What has filled a part of this task's memory, in areas that are there already. */
    readonly bulk: BulkFill | undefined;
  },
): Probe<string[]> {
  const { early } = task.memory;
  const rest = around.bulk?.restOf(task.pid);
  const mapped = task.mm.vmas.filter(isMapped);
  if (around.segments !== undefined) attachSegments(program, mapped, around.segments);
  for (const vma of mapped) {
    if (isSegment(vma) || early.has(vma) || rest?.areas.has(vma) === true) continue;
    mapArea(program, task, vma, around);
  }
  const placed = restoreAreaPolicies(program, mapped);
  addPages(program, rest?.own ?? task.memory.latePages, around);
  if (task.vdso !== undefined) restoreVdso(program, task.vdso);
  for (const vma of mapped) {
    if (!isText(vma)) continue;
    if (vma.probed === true && !hasPages(task, vma))
      mapTextAgain(program, vma, around.files.mappedFd(vma));
    else if (around.hasBreakpoints) announceProbes(program, vma, around.files.mappedFd(vma));
  }
  for (const ring of task.aioRings) restoreAioRing(program, ring);
  for (const vma of mapped) finishVma(program, vma, { isFilled: hasPages(task, vma) });
  for (const vma of task.mm.vmas) if ((vma.status & VMA_GUARD) !== 0) installGuard(program, vma);
  return placed;
}

function mapArea(
  program: Program,
  task: TaskPlan,
  vma: VmaEntry,
  { files }: MemorySurroundings,
): void {
  const file = mapsFile(vma) ? files.mappedFd(vma) : undefined;
  mapVma(program, vma, { file, isFilled: hasPages(task, vma) });
}

/** Whether pages come from the images into an area. */
function hasPages({ pages }: TaskPlan, area: VmaEntry): boolean {
  return pages.some(({ places }) => {
    const first = places[firstIn(places, area)];
    return first !== undefined && first.address < area.end;
  });
}

function addPages(
  program: Program,
  pages: readonly PlacedPages[],
  { images, imagesDir }: MemorySurroundings,
): void {
  for (const { name, places } of pages) {
    const file = openImage(program, images, name);
    const length = places.reduce((sum, place) => sum + place.length, 0);
    const isDirect = readsDirectly(join(imagesDir, name), length);
    if (isDirect) program.call("fcntl", [file, F_SETFL, O_DIRECT], { mayFail: true });
    readPages(program, file, { sources: places, isDirect });
    program.call("close", [file]);
  }
}
