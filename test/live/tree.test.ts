import { testRoom } from "./suite.ts";

testRoom("tree");
