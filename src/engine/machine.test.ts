import { mkdtempSync, rmSync } from "node:fs";
import { release, tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { ImageSetWriter } from "../images/image-set.ts";
import { Lsmtype } from "../images/schema/messages.generated.ts";
import { readCpu } from "../objects/cpu/cpu-info.ts";
import { compareMachines, fitsOf, machineEntry } from "./machine.ts";

const CPU = {
  ...readCpu(),
  model_id: "First",
  capability: Array.from({ length: 19 }, () => 0),
  xfeatures_mask: 7n,
};
const HERE = { kernel: "6.1.0-13-amd64", cpu: CPU, lsm: "none" } as const;
const SAVED = {
  kernel: "6.1.0-13-amd64",
  cpu: CPU,
  inventory: { img_version: 2, lsmtype: Lsmtype.NO_LSM },
  isPart: false,
};

function faults(saved: Partial<Parameters<typeof compareMachines>[0]>): string[] {
  const fits = compareMachines({ ...SAVED, ...saved }, HERE);
  return fits.flatMap(({ what, fault }) => (fault === undefined ? [] : [`${what}: ${fault}`]));
}

describe("a set on another machine", () => {
  it("fits the same one, and one with a newer kernel and a processor that can more", () => {
    expect(faults({})).toEqual([]);
    expect(faults({ kernel: "5.10.0" })).toEqual([]);
    expect(faults({ kernel: "6.0.9" })).toEqual([]);
    const more = { ...CPU, capability: CPU.capability.map(() => 0xffff_ffff) };
    expect(compareMachines(SAVED, { ...HERE, cpu: more }).every((fit) => !fit.fault)).toBe(true);
  });

  it.each(["6.2.0", "7.0"])("does not fit when its kernel was newer: %s", (kernel) => {
    expect(faults({ kernel })).toEqual([
      expect.stringMatching(/^kernel: this is Linux 6\.1\.0-13-amd64, an older one/),
    ]);
  });

  it("does not fit a processor that lacks instructions or state", () => {
    const avx512 = CPU.capability.map((word, index) => (index === 9 ? 1 << 16 : word));
    expect(faults({ cpu: { ...CPU, capability: avx512 } })).toEqual([
      expect.stringMatching(/^processor: this is First, and it lacks instructions .*bits 16/),
    ]);
    expect(faults({ cpu: { ...CPU, xfeatures_mask: 0xe7n } })).toEqual([
      expect.stringMatching(/^processor: .*lacks parts of the extended state/),
    ]);
  });

  it("does not fit without the security module of its labels, nor as a pre-dump", () => {
    const inventory = { img_version: 2, lsmtype: Lsmtype.SELINUX };
    expect(faults({ inventory })).toEqual([
      expect.stringMatching(/^security module: its labels are of selinux/),
    ]);
    expect(faults({ isPart: true })).toEqual([expect.stringMatching(/^images: it is a pre-dump/)]);
  });
});

describe("sets in directories", () => {
  it("tell of the machine that made them", () => {
    const dir = mkdtempSync(join(tmpdir(), "reprise-machine-"));
    onTestFinished(() => rmSync(dir, { recursive: true }));
    const set = new ImageSetWriter(join(dir, "set"), { sync: "none" });
    set.commit({ img_version: 2, fdinfo_per_id: true, machine: machineEntry() });
    const fits = fitsOf(join(dir, "set"));
    expect(fits.map(({ what, saved }) => [what, saved])).toEqual([
      ["images", "version 2"],
      ["kernel", release()],
      ["processor", readCpu().model_id],
      ["security module", "none"],
    ]);
    expect(fits.every(({ fault }) => fault === undefined)).toBe(true);
  });

  it("of a later format are told as such; no set is an error", () => {
    const dir = mkdtempSync(join(tmpdir(), "reprise-machine-"));
    onTestFinished(() => rmSync(dir, { recursive: true }));
    const set = new ImageSetWriter(join(dir, "set"), { sync: "none" });
    set.commit({ img_version: 3, fdinfo_per_id: true });
    expect(fitsOf(join(dir, "set"))).toMatchObject([{ what: "images", fault: expect.any(String) }]);
    expect(() => fitsOf(dir)).toThrow(expect.objectContaining({ code: "IMAGE_MISSING" }));
  });
});
