// Namespaces of a whole tree: names, limits, clocks, ids and numbers in them.

import { testRoom } from "./suite.ts";

testRoom("namespaces");
