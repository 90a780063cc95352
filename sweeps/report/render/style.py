"""The style sheet of the page: light and dark by the reader's setting, narrow to wide, and on paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{--paper:#fff;--ink:#1a1c1f;--soft:#5b626b;--faint:#69707a;--rule:#d9dde2;--hair:#eceef1;--wash:#f6f7f9;
--ours:#0b5cad;--band:rgba(11,92,173,.16);--base:#9aa1ab;--good:#17703a;--bad:#b3261e;--open:#8a5a00;--pick:#c2410c;
--grey:#767d87;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--ink:#e6e8eb;--soft:#a3abb5;--faint:#8d95a0;--rule:#343a42;
--hair:#252a30;--wash:#1b1f24;--ours:#6cb2ff;--band:rgba(108,178,255,.2);--base:#6c747f;--good:#5fce8b;--bad:#ff8a80;
--open:#e8b75a;--pick:#ff9d66;--grey:#8b939e}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3.2rem}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
header,main{max-width:70rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:3rem}
h1{font-size:clamp(1.5rem,1.1rem + 1.8vw,2.35rem);line-height:1.2;letter-spacing:-.015em;margin:.2rem 0 1.2rem;
max-width:52rem;text-wrap:balance}
.kicker{margin:0;color:var(--soft);font-size:.9rem}
h2{font-size:1.35rem;line-height:1.25;margin:3.2rem 0 .8rem;padding-top:.9rem;border-top:2px solid var(--ink)}
h3{font-size:1rem;margin:2rem 0 .4rem}
p{margin:.4rem 0;max-width:46rem}
a{color:inherit;text-decoration:none}
td a:hover,th a:hover,nav a:hover{text-decoration:underline}
.banner{border-left:3px solid var(--open);background:var(--wash);padding:.7rem 1rem;margin:0 0 1.2rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:1px;margin:0 0 1.5rem;
background:var(--rule);border:1px solid var(--rule)}
.tiles div{background:var(--paper);padding:.8rem 1rem;display:flex;flex-direction:column}
.tiles dt{order:2;font-size:.9rem}
.tiles dd{margin:0;order:3;color:var(--soft);font-size:.8rem}
.tiles .big{order:1;font-size:1.5rem;line-height:1.3;color:var(--ink);font-variant-numeric:tabular-nums}
nav{position:sticky;top:0;z-index:2;background:var(--paper);border-block:1px solid var(--rule);
padding:.55rem max(1.5rem,calc((100% - 67rem)/2));
display:flex;gap:1.3rem;overflow-x:auto;white-space:nowrap;font-size:.85rem;color:var(--soft);
scrollbar-width:none}
main{padding-bottom:5rem}
figure{margin:0}
figure.table{margin:1.4rem 0 1.8rem}
figcaption{font-weight:600;font-size:.92rem;margin:0 0 .35rem}
.scroll{overflow-x:auto}
.scroll:focus-visible{outline:2px solid var(--ours);outline-offset:2px}
table{border-collapse:collapse;font-size:.86rem;line-height:1.35;font-variant-numeric:tabular-nums;min-width:min(100%,
20rem);border-block:1.5px solid var(--ink)}
thead th{font-weight:500;color:var(--soft);vertical-align:bottom;border-bottom:1px solid var(--ink);white-space:nowrap}
.heads th{border-bottom:1px solid var(--rule);color:var(--ink);font-weight:600;text-align:center}
th,td{padding:.34rem .55rem;text-align:left;vertical-align:baseline}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
tbody th{font-weight:400}
th,td{white-space:nowrap}
.l.long,th.long{white-space:normal;min-width:6.5rem}
.l.long{min-width:9rem}
tbody tr+tr>*{border-top:1px solid var(--hair)}
.r{text-align:right}
.c{text-align:center}
td small{display:block;color:var(--faint);font-size:.72rem;white-space:nowrap}
td[data-trials]{cursor:help}
sup{font-size:.68em;line-height:0;color:var(--open);margin-left:.1em;font-weight:600}
.paper{color:var(--soft)}
.muted{color:var(--faint)}
.good{color:var(--good)}
.bad{color:var(--bad)}
.open{color:var(--open)}
.sign{display:inline-block;width:.9em;text-align:center}
.notes{list-style:none;margin:.5rem 0 0;padding:0;color:var(--soft);font-size:.78rem;line-height:1.45;max-width:52rem}
.notes li{margin:.1rem 0}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,30rem),1fr));gap:.4rem 2.4rem;
align-items:start}
.panels figure.table{margin:.9rem 0;min-width:0}
.panels table{width:100%;font-size:.83rem}
.panels th,.panels td{padding-inline:.32rem}
.panels th:first-child{padding-left:0}
.panels td:last-child{padding-right:0}
.claims{list-style:none;margin:0;padding:0}
.claims li{display:grid;grid-template-columns:11rem 1fr;gap:.2rem 1.6rem;padding:.85rem 0;border-top:1px solid
var(--hair)}
.claims li:first-child{border-top:0}
.claims p{margin:0}
.claims .verdict{font-weight:600;font-size:.92rem}
.claims .verdict small{display:block;font-weight:400;color:var(--soft);font-size:.78rem}
.claims .says{max-width:44rem}
.claims .muted{font-size:.85rem}
.claims li>div{min-width:0}
details{margin:.35rem 0}
summary{cursor:pointer;color:var(--soft);font-size:.85rem}
summary small{color:var(--faint)}
details[open]>summary{color:var(--ink)}
.caption{color:var(--soft);font-size:.84rem;margin:.1rem 0 .7rem}
.gallery{display:grid;gap:1.4rem 1.6rem;align-items:start}
.gallery figcaption{font-weight:500;font-size:.84rem}
.gallery figcaption small{font-weight:400;font-size:.76rem}
.tiny{grid-template-columns:repeat(auto-fill,minmax(8.6rem,1fr));gap:.8rem}
.panels h3{margin:1.2rem 0 .3rem}
.small{grid-template-columns:repeat(auto-fill,minmax(13.2rem,1fr))}
.medium{grid-template-columns:repeat(auto-fill,minmax(min(100%,20.5rem),1fr))}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,30rem),1fr))}
svg{display:block;max-width:100%;height:auto;overflow:visible;font-size:11px}
img{display:block;max-width:100%;height:auto;background:#fff}
svg text{fill:var(--soft)}
svg .name{fill:var(--faint)}
.grid{stroke:var(--hair)}
.axis{stroke:var(--faint)}
circle.ours{fill:var(--ours)}
circle.open{fill:var(--paper);stroke:var(--ours);stroke-width:1.5}
circle.paper{fill:var(--paper);stroke:var(--grey);stroke-width:1.5}
circle.pick{fill:var(--ours);stroke:var(--pick);stroke-width:2.5}
.whisker{stroke:var(--ours);stroke-width:1.6;opacity:.75}
.line{fill:none;stroke-width:1.7;stroke-linejoin:round}
.line.ours{stroke:var(--ours)}
.line.base{stroke:var(--base);stroke-width:1.2}
.band{fill:var(--band)}
@media (max-width:40rem){
body{font-size:15px}
header,main{padding-inline:1rem}
header{padding-top:1.6rem}
nav{padding-inline:1rem}
h2{margin-top:2.4rem}
.tiles{grid-template-columns:1fr 1fr}
.tiles div:last-child:nth-child(odd){grid-column:span 2}
.tiles .big{font-size:1.25rem}
table{font-size:.8rem}
th,td{padding:.3rem .3rem}
.claims li{grid-template-columns:1fr}
.small{grid-template-columns:1fr 1fr;gap:1.1rem .9rem}
.panels .sign{width:auto;font-size:1rem}
.panels table{font-size:.75rem}
.panels thead th{font-size:.7rem}
.panels th,.panels td{padding-inline:.18rem}
.panels .word{font-size:0}
.scroll{margin-right:-1rem;padding-right:1rem}
tbody th,thead tr>:first-child{position:sticky;left:0;background:var(--paper)}
.long{min-width:6.2rem}
tbody th.long{max-width:8.4rem}
}
@media print{
:root{--paper:#fff;--ink:#000;--soft:#333;--faint:#555;--rule:#bbb;--hair:#ddd;--wash:#fff;--ours:#0b5cad;--good:#17703a;
--bad:#b3261e;--open:#8a5a00;color-scheme:light}
body{font-size:10pt}
nav{display:none}
header,main{max-width:none;padding:0}
h2{break-after:avoid;margin-top:1.4rem}
figure,.claims p,tr{break-inside:avoid}
.scroll{overflow:visible}
section>details::details-content{content-visibility:visible}
#runs{display:none}
}
"""
