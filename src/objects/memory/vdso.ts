// The vdso and its data pages (vvar): kernel code and clocks mapped into every task. They come from the running kernel:
// ARCH_MAP_VDSO_64 maps all of them at an address, once no old one is mapped. A program has addresses inside the vdso in its
// registers and tables, so its layout must be the one that was saved.

import { RepriseError } from "../../errors.ts";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import { parseMaps } from "../../proc/maps.ts";
import { readProcText } from "../../proc/procfs.ts";
import { ARCH_MAP_VDSO_64 } from "../../sys/abi/sched.ts";
import { readMemory } from "../../sys/memory.ts";
import type { Program } from "../../tracee/program.ts";
import { planProxy, restoreProxy, type VdsoProxy } from "./vdso-proxy.ts";
import { readVdsoSymbols } from "./vdso-symbols.ts";
import { VMA_VDSO, VMA_VVAR } from "./vma.ts";

/** Where the kernel's areas of a task lie. */
export interface VdsoLayout {
  readonly address: number;
  readonly vvarSize: number;
  readonly vdsoSize: number;
}

/** The layout of a saved task; undefined when it has no vdso. */
export function savedVdso(vmas: readonly VmaEntry[]): VdsoLayout | undefined {
  const vdso = vmas.find(({ status }) => (status & VMA_VDSO) !== 0);
  const vvar = vmas.find(({ status }) => (status & VMA_VVAR) !== 0);
  if (vdso === undefined) return undefined;
  if (vvar === undefined)
    return { address: vdso.start, vvarSize: 0, vdsoSize: vdso.end - vdso.start };
  return {
    address: vvar.start,
    vvarSize: vdso.start - vvar.start,
    vdsoSize: vdso.end - vdso.start,
  };
}

/** The layout that this kernel gives: that of the engine itself. */
function kernelVdso(): VdsoLayout | undefined {
  own ??= { layout: findOwnVdso() };
  return own.layout;
}

/** This kernel's vdso code, to compare with a saved one. */
function kernelVdsoCode(): Buffer {
  const layout = kernelVdso();
  if (own?.code !== undefined) return own.code;
  const code = Buffer.alloc(layout?.vdsoSize ?? 0);
  if (layout !== undefined) {
    readMemory(
      process.pid,
      [{ address: layout.address + layout.vvarSize, length: code.length }],
      code,
    );
  }
  own = { layout, code };
  return code;
}

/** The engine's own areas stay where they are. */
let own: { readonly layout: VdsoLayout | undefined; readonly code?: Buffer } | undefined;

function findOwnVdso(): VdsoLayout | undefined {
  // Only a few of the engine's many lines are worth parsing.
  const lines = readProcText(process.pid, "maps").split("\n");
  const areas = parseMaps(lines.filter((line) => line.endsWith("]")).join("\n")).filter(
    ({ path }) => path.startsWith("[vvar") || path === "[vdso]",
  );
  const vdso = areas.find(({ path }) => path === "[vdso]");
  if (vdso === undefined) return undefined;
  const start = Math.min(...areas.map((area) => area.start));
  return { address: start, vvarSize: vdso.start - start, vdsoSize: vdso.end - vdso.start };
}

/** How a saved task gets its vdso. */
export type VdsoPlan =
  | { readonly kind: "kernel"; readonly layout: VdsoLayout }
  | { readonly kind: "proxy"; readonly proxy: VdsoProxy };

export interface SavedTaskVdso {
  readonly layout: VdsoLayout;
  /** The saved code; undefined when its pages are not in the images. */
  readonly code: Buffer | undefined;
  readonly vmas: readonly VmaEntry[];
  /** Where the task's threads go on. */
  readonly instructions: readonly bigint[];
}

/**
 * The running kernel's vdso takes the saved one's place when its functions lie where they lay, and no thread stands in other
 * code than it was in; else the saved code stays, with jumps.
 *
 * @throws RepriseError KERNEL_FEATURE, BAD_IMAGE
 */
export function planVdso(pid: number, saved: SavedTaskVdso): VdsoPlan {
  const { layout, code } = saved;
  const kernel = kernelVdso();
  if (kernel === undefined) {
    throw new RepriseError("KERNEL_FEATURE", `cannot restore pid ${pid}: this kernel has no vdso`, {
      pid,
      hint: "The kernel was started with vdso=0; start it without.",
    });
  }
  const ours = kernelVdsoCode();
  const sameSize = kernel.vvarSize === layout.vvarSize && kernel.vdsoSize === layout.vdsoSize;
  const isSame = code === undefined || sameCode(code, ours);
  if (sameSize && (isSame || (sameFunctions(code, ours) && !isInside(saved))))
    return { kind: "kernel", layout };
  const bytes = code ?? Buffer.alloc(0);
  const from = { layout, code: bytes, vmas: saved.vmas };
  return { kind: "proxy", proxy: planProxy(pid, from, { layout: kernel, code: ours }) };
}

function isInside({ layout, instructions }: SavedTaskVdso): boolean {
  const start = BigInt(layout.address + layout.vvarSize);
  const end = start + BigInt(layout.vdsoSize);
  return instructions.some((rip) => start <= rip && rip < end);
}

function sameFunctions(saved: Buffer, kernel: Buffer): boolean {
  const ours = readVdsoSymbols(kernel);
  const theirs = readVdsoSymbols(saved);
  if (ours === undefined || theirs?.size !== ours.size) return false;
  return [...theirs].every(([name, offset]) => ours.get(name) === offset);
}

/** CRIU and this engine may have used the unused end of the last page; only code and data count. */
function sameCode(saved: Buffer, kernel: Buffer): boolean {
  const end = kernel.length - trailingZeros(kernel);
  return saved.subarray(0, end).equals(kernel.subarray(0, end));
}

function trailingZeros(bytes: Buffer): number {
  let count = 0;
  while (count < bytes.length && bytes[bytes.length - 1 - count] === 0) count++;
  return count;
}

/** Adds the calls that map vvar and vdso where they were. */
export function restoreVdso(program: Program, plan: VdsoPlan): void {
  if (plan.kind === "proxy") {
    restoreProxy(program, plan.proxy);
    return;
  }
  const { layout } = plan;
  program.call("arch_prctl", [ARCH_MAP_VDSO_64, layout.address], {
    label: "map the vdso",
    hint: "The kernel needs CONFIG_CHECKPOINT_RESTORE for ARCH_MAP_VDSO_64.",
  });
}
