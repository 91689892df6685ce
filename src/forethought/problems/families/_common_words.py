"""Common English words, lower-case ASCII letters only, for the families that ask about words."""

from __future__ import annotations

from typing import Final

_WORDS: Final = """
able about above across action after again air all along also animal answer apple area arm around
art ask autumn away baby back bad bag ball banana bank base basket beach bean bear beauty because
bed bee before begin bell below berry best better big bird black blood blue board boat body bone
book bottle bottom box boy bread bridge bright bring brother brown build bus business butter button
cake call camera can candle car card carry castle cat catch centre chair chance change cheese child
choose church circle city class clean clear clock cloud coast coat coffee cold colour committee
common complete cook copper corn cotton country course cover cow cream cross cup dance dark
daughter day deep desert dinner distance doctor dog door double dream dress drink drive dry duck
dust ear early earth east easy egg eight elephant engine enough evening ever example eye face
family far farm father feather feet field fill find finger fire fish five floor flower fly foot
forest forty four fox free fresh friend frog front fruit full game garden giant girl give glass
glove goat gold good goose grape grass great green grey ground group guess hair hall hammer hand
happy hat head hear heart heavy hello help hen hill holiday home honey horse hotel hour house
hundred ice inch insect iron island jacket job juice jump kettle key kind king kitchen kitten knee
knife lady lake lamp land language large laugh leaf learn leather left lemon lesson letter level
library life light lion little long lunch machine man map market meadow meal meat metal middle milk
million minute mirror money monkey month moon morning mother mountain mouse mouth music name near
neck needle nest night noise north nose number nurse ocean office oil old onion open orange order
oven owl page paint pair paper parent park party path peace pear pen pencil people pepper person
piano picture pig pillow plane planet plant plate pocket poem point pond potato pretty queen
question quick quiet rabbit radio rain red rice right ring river road rock roof room root rope rose
round rubber salt sand school science sea season second seed seven shadow sheep ship shirt shoe
shop short silk silver simple sister sleep slow small smoke snow soap soccer soft song soup south
space spoon spring square stair star station stone store storm story street strong sugar summer sun
supper sweet swim table tail tall teacher ten tent thirteen thunder ticket tiger time tomato
tomorrow tooth top tower town train travel tree trouble turtle umbrella uncle under valley village
violin voice wagon walk wall warm watch water weather week west wheel white wide wind window winter
wish wolf woman wood wool word work world yellow yes young zebra zero zoo
"""

COMMON_WORDS: Final = tuple(_WORDS.split())
