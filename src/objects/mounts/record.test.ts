import { describe, expect, it } from "vitest";
import { Fstype, type MntEntry } from "../../images/schema/messages.generated.ts";
import { withContext } from "./record.ts";

const NEW = "system_u:object_r:container_file_t:s0:c204,c495";

function mount(options: string): MntEntry {
  return {
    fstype: Fstype.TMPFS,
    mnt_id: 1,
    root_dev: 2,
    parent_mnt_id: 3,
    flags: 0,
    root: "/",
    mountpoint: "/tmp",
    source: "tmpfs",
    options,
  };
}

describe("withContext()", () => {
  it.each([
    ['context="system_u:object_r:x_t:s0:c82,c137",size=4m', `context="${NEW}",size=4m`],
    ["size=4m,context=system_u:object_r:x_t:s0", `size=4m,context="${NEW}"`],
    ["size=4m", "size=4m"],
    ['rootcontext="system_u:object_r:x_t:s0"', 'rootcontext="system_u:object_r:x_t:s0"'],
    ["", ""],
  ])("makes of '%s' '%s'", (before, after) => {
    expect(withContext(mount(before), NEW).options).toBe(after);
  });
});
