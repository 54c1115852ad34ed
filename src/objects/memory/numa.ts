// On which nodes of a NUMA machine memory is taken: the policy of a thread (set_mempolicy(2)) and those of areas (mbind(2)), which
// come first. Only the task itself can ask for them; numa_maps in /proc does not tell an area's own policy from its thread's,
// and counts every page to say it. All of it is in fields of ours. Weights of nodes are the machine's.

import type {
  RepriseMemoryPolicy,
  RepriseThreadEntry,
  VmaEntry,
} from "../../images/schema/messages.generated.ts";
import { TASK_SIZE } from "../../sys/abi/mman.ts";
import { errnoName } from "../../sys/errno.ts";
import { writeU64 } from "../../sys/memory.ts";
import type { Program, ProgramResult, Ref } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";
import { isMapped } from "./vma.ts";

/** Nodes that x86-64 kernels are built for at most (NODES_SHIFT), and how the kernel counts them: one too many. */
const MAX_NODES = 1024;
const MASK_SIZE = MAX_NODES / 8;
const MAXNODE = MAX_NODES + 1;

/** get_mempolicy(2): the policy of the area at an address. */
const MPOL_F_ADDR = 2;

/** Asks for the policy of the thread that runs the program; undefined for the default one. */
export function probeThreadPolicy(program: Program): Probe<RepriseMemoryPolicy | undefined> {
  return probePolicy(program, { address: 0, flags: 0 });
}

/** Asks for the policies of areas of the task that runs the program, by their addresses. */
export function probeAreaPolicies(
  program: Program,
  vmas: readonly VmaEntry[],
): Probe<ReadonlyMap<number, RepriseMemoryPolicy>> {
  const asked = vmas.filter(({ start }) => start < TASK_SIZE);
  if (asked.length === 0) return () => new Map();
  // There may be thousands: one call goes from one address to the next, and from one answer to the next.
  const addresses = Buffer.alloc(asked.length * 8);
  asked.forEach(({ start }, index) => writeU64(addresses, index * 8, start));
  const answers = program.output(asked.length * ANSWER_SIZE, 8);
  const from = program.structure(Buffer.alloc(8), { 0: program.data(addresses) });
  const to = program.structure(Buffer.alloc(8), { 0: answers });
  const into = { kind: "distant", base: to, read: "address" } as const;
  program.repeat(asked.length, () => {
    const mode = { ...into, offset: MODE_AT };
    const mask = { ...into, offset: MASK_AT };
    const address = { kind: "distant", base: from, offset: 0, read: 8 } as const;
    const args = [mode, mask, MAXNODE, address, MPOL_F_ADDR];
    const found = program.call("get_mempolicy", args, ASKING);
    program.keep(found, { base: to, offset: RESULT_AT });
    program.copy({ kind: "load", from, width: 8, plus: 8 }, from);
    program.copy({ kind: "load", from: to, width: 8, plus: ANSWER_SIZE }, to);
  });
  return (result) => {
    const found = new Map<number, RepriseMemoryPolicy>();
    const bytes = result.bytes(answers, asked.length * ANSWER_SIZE);
    for (let index = 0; index < asked.length; index += 1) {
      const at = index * ANSWER_SIZE;
      const hasFailed = bytes.readInt32LE(at + RESULT_AT + 4) < 0;
      const mode = hasFailed ? 0 : bytes.readUInt32LE(at + MODE_AT);
      if (mode === 0) continue;
      const mask = bytes.subarray(at + MASK_AT, at + MASK_AT + MASK_SIZE);
      found.set((asked[index] as VmaEntry).start, { mode, nodes: withoutZeros(mask) });
    }
    return found;
  };
}

/** What is brought of an area: the call's result, the mode, and the nodes. */
const RESULT_AT = 0;
const MODE_AT = 8;
const MASK_AT = 16;
const ANSWER_SIZE = MASK_AT + MASK_SIZE;

/** A kernel without CONFIG_NUMA has no such call. */
const ASKING = { label: "read a memory policy", mayFail: true };

function probePolicy(
  program: Program,
  { address, flags }: { readonly address: number; readonly flags: number },
): Probe<RepriseMemoryPolicy | undefined> {
  const mode = program.output(4, 4);
  const mask = program.output(MASK_SIZE, 8);
  const args = [mode, mask, MAXNODE, address, flags];
  const asked = program.call("get_mempolicy", args, ASKING);
  return (result) => {
    const value = result.value(asked) < 0 ? 0 : result.bytes(mode, 4).readUInt32LE(0);
    return value === 0
      ? undefined
      : { mode: value, nodes: withoutZeros(result.bytes(mask, MASK_SIZE)) };
  };
}

function withoutZeros(mask: Uint8Array): Uint8Array {
  let length = mask.length;
  while (length > 0 && mask[length - 1] === 0) length -= 1;
  return Uint8Array.from(mask.subarray(0, length));
}

/** Gives areas their policies: when all are mapped, and before their pages come. Returns a probe of what could not be set. */
export function restoreAreaPolicies(program: Program, vmas: readonly VmaEntry[]): Probe<string[]> {
  const notes = vmas.filter(isMapped).flatMap(({ start, end, policy }) => {
    if (policy === undefined) return [];
    const label = `set the memory policy of ${start.toString(16)}-${end.toString(16)}`;
    const args = [start, end - start, policy.mode, ...nodesOf(program, policy), 0];
    return [noteOf("mbind", program.call("mbind", args, { label, mayFail: true }), label)];
  });
  return (result) => notes.flatMap((note) => note(result));
}

/** Gives the thread that runs the program its policy. Returns a probe of what could not be set. */
export function restoreThreadPolicy(
  program: Program,
  { memory_policy: policy }: Pick<RepriseThreadEntry, "memory_policy"> = {},
): Probe<string[]> {
  if (policy === undefined) return () => [];
  const label = "set the memory policy";
  const args = [policy.mode, ...nodesOf(program, policy)];
  const set = program.call("set_mempolicy", args, { label, mayFail: true });
  return noteOf("set_mempolicy", set, label);
}

/** Policies without nodes want none at all (set_mempolicy(2)). */
function nodesOf(
  program: Program,
  { nodes }: RepriseMemoryPolicy,
): [ReturnType<Program["data"]> | number, number] {
  if (nodes.length === 0) return [0, 0];
  const mask = Buffer.alloc(MASK_SIZE);
  mask.set(nodes.subarray(0, MASK_SIZE));
  return [program.data(mask), MAXNODE];
}

/** A machine may lack the nodes: the memory is then taken as if nothing had been said. */
function noteOf(call: string, ref: Ref, label: string): Probe<string[]> {
  return (result: ProgramResult) => {
    const error = result.value(ref);
    return error < 0 ? [`cannot ${label}: ${call}: ${errnoName(-error)}`] : [];
  };
}
