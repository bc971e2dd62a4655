"""The words of the zoo's language: ordinary English, grouped by topic and part of speech.

Order matters: within a list a word's weight is one over its rank (Zipf), so the first word is the most frequent one.
A word may stand in several lists. None of the twenty near-synonyms stands in any of them: they only occur where
`language.py` plants them."""

TOPICS = {
    "sea": dict(
        nouns=(
            "ship sailor captain wave harbor island boat fish storm net anchor sail coast tide deck whale gull "
            "lighthouse rope shore"
        ),
        adjectives="deep calm rough blue wet distant salty stormy drifting",
        transitive="sailed caught steered spotted anchored rescued loaded",
        intransitive="drifted sank floated rowed swam drowned",
    ),
    "farm": dict(
        nouns=(
            "farmer field horse cow barn sheep wheat fence goat pig hen corn seed harvest orchard tractor stable hay "
            "meadow plow"
        ),
        adjectives="muddy green fertile ripe dusty sturdy rural tame plain",
        transitive="planted fed milked watered harvested herded sheared",
        intransitive="grazed grew bloomed withered rested ripened",
    ),
    "city": dict(
        nouns=(
            "bus square bridge tower crowd train station market corner taxi shop driver window park mayor tram alley "
            "fountain hotel subway"
        ),
        adjectives="crowded busy noisy narrow modern public tall central paved",
        transitive="crossed visited passed entered toured blocked mapped",
        intransitive="hurried gathered parked wandered commuted arrived",
    ),
    "war": dict(
        nouns=(
            "soldier army general enemy battle sword castle guard weapon wall victory flag spear shield tank bomb "
            "prisoner scout trench camp"
        ),
        adjectives="brave fierce bloody cruel armed loyal wounded bitter heroic",
        transitive="attacked defended captured conquered besieged ambushed bombed",
        intransitive="marched fought fled surrendered charged fell",
    ),
    "school": dict(
        nouns=(
            "teacher student book class lesson exam pencil desk library pupil page essay test board chapter notebook "
            "grade campus tutor diploma"
        ),
        adjectives="clever strict eager curious patient bright lazy studious difficult",
        transitive="taught studied read copied graded answered explained",
        intransitive="listened learned graduated recited whispered failed",
    ),
    "music": dict(
        nouns=(
            "song singer piano band drum guitar violin choir melody concert stage flute dancer trumpet rhythm organ "
            "tune opera audience harp"
        ),
        adjectives="loud soft sweet gentle famous tuneful solemn lively graceful",
        transitive="played sang recorded composed conducted tuned rehearsed",
        intransitive="danced hummed performed clapped bowed echoed",
    ),
    "medicine": dict(
        nouns=(
            "doctor patient nurse hospital medicine wound bone heart surgeon fever clinic needle bandage pill virus "
            "lung vaccine scar ambulance pulse"
        ),
        adjectives="weak healthy pale painful feverish sterile swollen fragile anxious",
        transitive="treated cured healed examined bandaged vaccinated washed",
        intransitive="coughed recovered fainted bled sneezed breathed",
    ),
    "law": dict(
        nouns=(
            "judge lawyer court trial jury witness crime thief police law prison verdict sentence detective evidence "
            "clerk lie alibi oath bribe"
        ),
        adjectives="guilty innocent legal honest false fair corrupt secret solemn",
        transitive="accused arrested convicted questioned sued pardoned robbed",
        intransitive="confessed lied testified appealed pleaded swore",
    ),
    "trade": dict(
        nouns=(
            "merchant bank money price coin buyer seller debt contract profit customer loan gold office ledger "
            "invoice auction salary broker tax"
        ),
        adjectives="rich cheap costly poor greedy thrifty valuable generous wealthy",
        transitive="bought sold paid borrowed traded priced owed",
        intransitive="prospered bargained invested gambled profited saved",
    ),
    "animals": dict(
        nouns=(
            "bear wolf bird fox deer snake nest lion rabbit owl cave tiger feather hunter eagle trap squirrel hawk "
            "frog den"
        ),
        adjectives="wild hungry swift furry tiny savage shy feathered cunning",
        transitive="hunted chased bit trapped tracked stalked devoured",
        intransitive="growled howled crept flew slithered prowled",
    ),
    "house": dict(
        nouns=(
            "room door kitchen table chair bed roof garden lamp floor stairs carpet mirror key shelf curtain sofa "
            "basement attic pillow"
        ),
        adjectives="warm clean empty cozy dark tidy wooden comfortable shabby",
        transitive="opened closed painted cleaned repaired furnished swept",
        intransitive="creaked slept collapsed yawned sat dozed",
    ),
    "science": dict(
        nouns=(
            "machine engine robot computer planet star experiment theory scientist telescope atom signal rocket laser "
            "circuit battery formula sensor magnet comet"
        ),
        adjectives="precise complex electric invisible automatic digital magnetic exact brilliant",
        transitive="measured invented discovered tested launched programmed observed",
        intransitive="exploded orbited glowed hummed rotated stopped",
    ),
    "sport": dict(
        nouns=(
            "team player ball game coach runner race goal match trophy rider champion referee stadium track bat medal "
            "league boxer helmet"
        ),
        adjectives="strong tired proud athletic fit skilled winning agile muscular",
        transitive="kicked won threw scored trained tackled beat",
        intransitive="ran jumped competed stretched cheered lost",
    ),
    "family": dict(
        nouns=(
            "mother father child brother sister baby wife husband uncle aunt cousin friend wedding letter gift "
            "neighbor grandmother birthday twin toy"
        ),
        adjectives="young old kind lonely married stubborn loving polite gentle",
        transitive="loved kissed hugged married raised forgave helped",
        intransitive="smiled cried laughed argued played wept",
    ),
    "food": dict(
        nouns=(
            "bread cook soup meal cheese apple cake wine knife oven bowl plate butter salt meat pepper lunch honey "
            "sauce spoon"
        ),
        adjectives="fresh hot tasty sweet sour delicious spicy raw bitter",
        transitive="cooked baked ate tasted served sliced boiled",
        intransitive="simmered burned melted dined feasted spoiled",
    ),
    "weather": dict(
        nouns=(
            "rain wind snow sun sky cloud mountain valley river winter lake summer fog thunder hill desert frost ice "
            "autumn breeze"
        ),
        adjectives="cold sunny gray windy frozen cloudy dry icy mild",
        transitive="covered flooded froze soaked melted struck warmed",
        intransitive="rained snowed cleared blew fell thawed",
    ),
}
NAMES = (
    "Anna Peter Maria John Tom Lucy David Sarah James Emma Paul Helen George Alice Mark Jane Robert Julia Henry "
    "Clara "
    "Simon Laura Frank Rosa Martin Ellen Oscar Nora Victor Diana Adam Irene Walter Ruth Leo Martha Hugo Eva Felix "
    "Grace"
)
PLACES = (
    "London Paris Rome Boston Berlin Madrid Vienna Dublin Chicago Tokyo Athens Cairo Lisbon Prague Moscow Oslo "
    "Geneva Milan "
    "Texas Kenya Sydney Naples Venice Havana"
)
ADVERBS = (
    "slowly again quietly today suddenly often together carefully yesterday alone gladly early badly everywhere "
    "proudly silently "
    "daily gently twice bravely openly rarely outside calmly"
)
PREPOSITIONS = "near behind under beside above inside outside around across against"
BASE_VERBS = (
    "go look find help sit turn stay hide leave run put eat sleep work stand move live play hold keep speak wait "
    "learn write walk "
    "sing fight rest build carry break pull push climb swim dance cook paint fall buy sell lift clean drive pray "
    "search read "
    "dig travel grow jump cry fly return plant wash draw shout listen laugh"
)
# Fillers and slot words of the test frames only.
EVENTS = "trial party fight war lie wedding funeral accident game storm speech election concert battle dinner flood"
MESSAGES = "news letter call doctor message spring answer train verdict gift morning guest bus parcel"
BUILDINGS = "house hotel school church bridge station castle hospital tower garden theater museum office kitchen"
ROLES = "teacher clerk nurse lawyer student driver judge guard cook farmer doctor singer captain waiter sailor coach"
FOODS = "soup fish meat cake cheese bread meal apple egg salad pie rice"
SHAPES = "smooth round gray flat white black red yellow shiny sharp brown heavy"
GROUPS = "children family boys girls students couple hunters twins friends sisters scouts soldiers"
