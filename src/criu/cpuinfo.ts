// `criu cpuinfo dump` and `criu cpuinfo check`, and what --cpu-cap asks of dump and restore: cpuinfo.img.

import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { entryBytes, headBytes, ImageFile, readEntries } from "../images/image-file.ts";
import { log } from "../log.ts";
import {
  cpuInfoEntry,
  cpuMismatch,
  readCpu,
  type CpuCapabilities,
} from "../objects/cpu/cpu-info.ts";
import type { CriuOptions } from "./options.ts";
import type { Directories } from "./paths.ts";

const ALL: CpuCapabilities = { fpu: true, ins: true, cpu: true };
const NONE: CpuCapabilities = { fpu: false, ins: false, cpu: false };
const DEFAULT: CpuCapabilities = { fpu: true, ins: true, cpu: false };

/** Runs the action. Returns the exit code. @throws RepriseError KERNEL_FEATURE when the processor does not fit */
export function cpuinfoAction(options: CriuOptions, directories: Directories): number {
  switch (options.words[1]) {
    case "dump":
      writeCpuInfo(directories);
      return 0;
    case "check": {
      const { compared } = cpuCapabilities(options);
      const asksNothing = !compared.fpu && !compared.ins && !compared.cpu;
      checkCpuInfo(directories, asksNothing ? ALL : compared);
      return 0;
    }
    case undefined:
      throw new RepriseError("BAD_ARGUMENT", "cpuinfo requires an action: dump or check");
    default:
      throw new RepriseError("BAD_ARGUMENT", `unknown cpuinfo sub-command: ${options.words[1]}`);
  }
}

/** --cpu-cap: what is compared, and whether cpuinfo.img is written and read at all. */
export function cpuCapabilities({ values }: CriuOptions): {
  readonly compared: CpuCapabilities;
  readonly inImage: boolean;
} {
  const given = values["cpu-cap"];
  if (given === undefined) return { compared: DEFAULT, inImage: false };
  let compared: CpuCapabilities = given === "" ? ALL : DEFAULT;
  for (const word of given.split(",").filter((one) => one !== "")) {
    const off = word.startsWith("^");
    const name = off ? word.slice(1) : word;
    if (name === "all") compared = off ? NONE : ALL;
    else if (name === "none") compared = off ? ALL : NONE;
    else if (name === "fpu" || name === "ins" || name === "cpu")
      compared = { ...compared, [name]: !off };
    else {
      throw new RepriseError("BAD_ARGUMENT", `invalid argument for --cpu-cap: ${word}`, {
        hint: "It must be a list of cpu, fpu, ins, all, none, each with ^ before it to take it away.",
      });
    }
  }
  return { compared, inImage: compared.fpu || compared.ins || compared.cpu };
}

/** Writes cpuinfo.img. */
function writeCpuInfo({ imagesDir }: Directories): void {
  const entry = entryBytes("cpuinfo_entry", cpuInfoEntry());
  writeFileSync(join(imagesDir, NAME), Buffer.concat([headBytes("cpuinfo"), entry]), {
    mode: 0o644,
  });
}

/** Compares cpuinfo.img with this processor. @throws RepriseError IMAGE_MISSING, BAD_IMAGE, KERNEL_FEATURE */
function checkCpuInfo({ imagesDir }: Directories, compared: CpuCapabilities): void {
  const path = join(imagesDir, NAME);
  if (!existsSync(path)) {
    throw new RepriseError("IMAGE_MISSING", "No cpuinfo image", {
      hint: "criu cpuinfo dump, or a dump with --cpu-cap, writes cpuinfo.img.",
    });
  }
  const file = new ImageFile(path, NAME);
  try {
    const [saved] = readEntries(file, "cpuinfo");
    const [cpu] = saved?.value.x86_entry ?? [];
    if (cpu === undefined)
      throw new RepriseError("BAD_IMAGE", `cannot read ${NAME}: it has no x86 processor`);
    const fault = cpuMismatch(cpu, readCpu(), compared);
    if (fault === undefined) return;
    throw new RepriseError("KERNEL_FEATURE", `the processor does not fit the images: ${fault}`, {
      hint: "Restore on a processor like the first one, or leave the check out: --cpu-cap none.",
    });
  } finally {
    file[Symbol.dispose]();
  }
}

const NAME = "cpuinfo.img";

/** What --cpu-cap asks at the start of a restore. */
export function checkCpuIfAsked(options: CriuOptions, directories: Directories): void {
  const { compared, inImage } = cpuCapabilities(options);
  if (!inImage) return;
  log.debug("comparing the processor with cpuinfo.img");
  checkCpuInfo(directories, compared);
}
