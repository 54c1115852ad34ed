import { join } from "node:path";
import { expect, it } from "vitest";
import { checkCore } from "./check-task.ts";
import { ImageSetReader } from "./image-set.ts";
import type { CoreEntry } from "./schema/messages.generated.ts";

const TINY = join(import.meta.dirname, "../../test/fixtures/criu-images/tiny/img");

it.each(["st_space", "xmm_space", "ymmh_space"] as const)(
  "takes neither more nor fewer words of %s than there are",
  (field) => {
    const set = new ImageSetReader(TINY);
    const [{ pid } = { pid: 0 }] = set.read("pstree");
    const [core] = set.read("core", pid);
    if (core === undefined) throw new Error("no core image");
    expect(() => checkCore(core, { pid, role: "leader" })).not.toThrow();
    for (const change of [doubled, shortened])
      expect(() => checkCore(withWords(core, field, change), { pid, role: "leader" })).toThrow(
        /too few or too many|words of/,
      );
  },
);

const doubled = (words: readonly number[]): readonly number[] => [...words, ...words];
const shortened = (words: readonly number[]): readonly number[] => words.slice(1);

function withWords(
  core: CoreEntry,
  field: "st_space" | "xmm_space" | "ymmh_space",
  change: (words: readonly number[]) => readonly number[],
): CoreEntry {
  const fpregs = core.thread_info?.fpregs;
  if (fpregs?.xsave === undefined) throw new Error("no extended state");
  const changed =
    field === "ymmh_space"
      ? { ...fpregs, xsave: { ...fpregs.xsave, ymmh_space: change(fpregs.xsave.ymmh_space) } }
      : { ...fpregs, [field]: change(fpregs[field]) };
  return { ...core, thread_info: { ...core.thread_info, fpregs: changed } } as CoreEntry;
}
