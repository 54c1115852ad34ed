// The machine on which a set was made, and whether this one can take it: a program may use every instruction of the processor and
// every call of the kernel that it found at its start, and does not look again after a restore. Sets of CRIU tell of the processor
// only, in cpuinfo.img, and only when they were asked to (--cpu-cap).

import { RepriseError } from "../errors.ts";
import type { MessageInput } from "../images/codec.ts";
import { ImageSetReader } from "../images/image-set-reader.ts";
import type {
  CpuinfoX86Entry,
  InventoryEntry,
  RepriseMachine,
} from "../images/schema/messages.generated.ts";
import { cpuMismatch, readCpu, type CpuCapabilities } from "../objects/cpu/cpu-info.ts";
import { readBootId, readKernelRelease } from "../proc/self.ts";
import { hostLsm, lsmOfCode } from "../objects/task/lsm.ts";

/** One side of a machine, and whether a set fits it. */
export interface Fit {
  readonly what: "images" | "kernel" | "processor" | "security module";
  /** What the set says of the machine where it was made; undefined when it says nothing. */
  readonly saved: string | undefined;
  /** Why it may not come back here, and what to do; undefined when it fits. */
  readonly fault: string | undefined;
}

/** This machine, for the inventory. */
export function machineEntry(): MessageInput<RepriseMachine> {
  const cpu = ownCpu();
  return { kernel: readKernelRelease(), ...(cpu === undefined ? {} : { cpu }), boot: readBootId() };
}

/**
 * Compares the machine of a set with this one.
 *
 * @throws RepriseError IMAGE_MISSING when the directory holds no set, BAD_IMAGE when it is damaged.
 */
export function fitsOf(imagesDir: string): readonly Fit[] {
  let set: ImageSetReader;
  try {
    set = new ImageSetReader(imagesDir);
  } catch (error) {
    if (!(error instanceof RepriseError) || error.code !== "IMAGE_VERSION") throw error;
    const fault = `${error.message}. ${error.hint ?? ""}`.trimEnd();
    return [{ what: "images", saved: undefined, fault }];
  }
  return fitsOfSet(set);
}

/** The same for a set that is open. `processor`: what of the processor is compared. @default state and instructions */
export function fitsOfSet(set: ImageSetReader, processor?: CpuCapabilities): readonly Fit[] {
  const { machine } = set.inventory;
  const cpu = machine?.cpu ?? set.read("cpuinfo")[0]?.x86_entry[0];
  return compareMachines(
    { kernel: machine?.kernel, cpu, inventory: set.inventory, isPart: set.isPreDump },
    { kernel: readKernelRelease(), cpu: ownCpu(), lsm: hostLsm() },
    processor,
  );
}

/** What a warning says of a side that does not fit; undefined when it does. */
export function misfitText({ what, saved, fault }: Fit): string | undefined {
  if (fault === undefined) return undefined;
  return `${what}${saved === undefined ? "" : ` (saved: ${saved})`}: ${fault}`;
}

interface SavedMachine {
  readonly kernel: string | undefined;
  readonly cpu: CpuinfoX86Entry | undefined;
  readonly inventory: Pick<InventoryEntry, "img_version" | "lsmtype">;
  /** Memory of a pre-dump alone. */
  readonly isPart: boolean;
}

/** What `fitsOf` finds for a set of that machine on this one. */
export function compareMachines(
  saved: SavedMachine,
  here: {
    readonly kernel: string;
    readonly cpu: CpuinfoX86Entry | undefined;
    readonly lsm: ReturnType<typeof hostLsm>;
  },
  processor: CpuCapabilities = { fpu: true, ins: true, cpu: false },
): readonly Fit[] {
  const lsm = lsmOfCode(saved.inventory.lsmtype);
  return [
    {
      what: "images",
      saved: `version ${saved.inventory.img_version}`,
      fault: saved.isPart
        ? "it is a pre-dump, which holds only memory. Restore from the dump that followed it"
        : undefined,
    },
    { what: "kernel", saved: saved.kernel, fault: kernelFault(saved.kernel, here.kernel) },
    {
      what: "processor",
      saved: saved.cpu === undefined ? undefined : (saved.cpu.model_id ?? "unknown"),
      fault: cpuFault(saved.cpu, here.cpu, processor),
    },
    {
      what: "security module",
      saved: lsm,
      fault:
        lsm === "none" || lsm === here.lsm
          ? undefined
          : `its labels are of ${lsm}, and this kernel has ${here.lsm}. Give another label with --lsm-profile`,
    },
  ];
}

function kernelFault(saved: string | undefined, here: string): string | undefined {
  if (saved === undefined) return undefined;
  const [[major, minor], [ownMajor, ownMinor]] = [versionOf(saved), versionOf(here)];
  if (ownMajor > major || (ownMajor === major && ownMinor >= minor)) return undefined;
  return `this is Linux ${here}, an older one: programs may go on using calls that it lacks. Restore on ${major}.${minor} or later`;
}

function cpuFault(
  saved: CpuinfoX86Entry | undefined,
  here: CpuinfoX86Entry | undefined,
  compared: CpuCapabilities,
): string | undefined {
  if (saved === undefined || !(compared.fpu || compared.ins || compared.cpu)) return undefined;
  if (here === undefined) return "this processor cannot be described. Try on one of Intel or AMD";
  const fault = cpuMismatch(saved, here, compared);
  if (fault === undefined) return undefined;
  return `this is ${here.model_id ?? "another one"}, and ${fault}. Restore on a processor like the first one`;
}

function versionOf(text: string): readonly [number, number] {
  const [major = 0, minor = 0] = text.split(/[.-]/).map(Number);
  return [major, minor];
}

function ownCpu(): CpuinfoX86Entry | undefined {
  try {
    return readCpu();
  } catch (error) {
    // Of a vendor that images cannot name: then it is not compared.
    if (error instanceof RepriseError && error.code === "UNSUPPORTED") return undefined;
    throw error;
  }
}
